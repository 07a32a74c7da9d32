"""Measures time per token and memory carried against position: RWKV-7 beside a transformer of its size.

    python benchmarks/flat_line.py --out out/flat_line

Writes flat_line.json and flat_line.png into --out, nothing elsewhere, and prints a table. RWKV_EXPORT_THREADS=1 gives
each side one thread; without it each has all processors.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flat import figure
from flat.sides import Apart, Rwkv, Transformer, Window
from flat.summary import Run, medians, megabytes, sentences, summary, table
from rich.progress import track

from runtimes import threads
from runtimes.errors import RwkvExportError
from runtimes.files import write_text_atomically
from rwkv_export import failure
from rwkv_export.output import remark, stderr, stdout
from validation import machine

if TYPE_CHECKING:
    from flat.prepare import Pair

BUSY = 0.1  # share of the processors above which a run says so
ATTENTION = "com.microsoft.GroupQueryAttention; past and present are one buffer, written in place"


@dataclass(frozen=True)
class Choices:
    """What to make and where to measure; HELP says what each is."""

    layers: int = 6
    width: int = 512
    vocab: int = 8192
    kv_heads: int = 0
    tokens: int = 32_000
    every: int = 500
    window: int = 20


HELP = {
    "layers": "of both models",
    "width": "of both, in heads of 64",
    "vocab": "of both: small, since the head is the same work on either side",
    "kv_heads": "heads of keys and values in the transformer; 0: as many as of queries",
    "tokens": "the last position",
    "every": "distance between measured positions",
    "window": "timed tokens at each",
}
QUICK = Choices(layers=2, width=128, vocab=257, tokens=200, every=50, window=5)


def prepared(folder: Path, choices: Choices) -> Pair:
    """Imported here, because the processes that measure load this file and have no use for torch."""
    from flat.prepare import prepare

    return prepare(
        folder,
        layers=choices.layers,
        width=choices.width,
        vocab=choices.vocab,
        kv_heads=choices.kv_heads or choices.width // 64,
        capacity=choices.tokens + choices.window,
    )


def decode(pair: Pair, choices: Choices) -> Run:
    """Windows at 0, every, 2 every, ... tokens; the side that goes first changes from position to position."""
    shape, busy = pair.shape, machine.busy()
    windows: dict[str, list[Window]] = {"rwkv": [], "transformer": []}
    decoder = (pair.decoder, shape.ports(), shape.cache_shape, shape.vocab)
    with Apart(Rwkv, pair.rwkv) as rwkv, Apart(Transformer, *decoder) as transformer:
        sides = [(rwkv, windows["rwkv"]), (transformer, windows["transformer"])]
        positions = range(0, choices.tokens + 1, choices.every)
        for position in track(positions, "decoding", console=stderr()):
            for side, measured in sides:
                measured.append(side.measure(position, choices.window))
            sides.reverse()
    return Run(windows["rwkv"], windows["transformer"], max(busy, machine.busy()))


def document(pair: Pair, run: Run, choices: Choices) -> dict[str, Any]:
    """Everything a reader needs to repeat the run, and every sample."""
    sides = {"rwkv": run.rwkv, "transformer": run.transformer}
    return {
        "schema": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": asdict(machine.describe()),
        "busy": run.busy,
        "threads": threads.requested() or "all",
        "choices": asdict(choices),
        "rwkv": {"parameters": pair.rwkv_parameters, "state_bytes": pair.state_bytes},
        "transformer": asdict(pair.shape)
        | {"parameters": pair.parameters, "attention": ATTENTION, "error_in_std": pair.error},
        "summary": summary(run),
        "windows": {
            name: [{"median_ms": middle, **asdict(one)} for middle, one in zip(medians(side), side, strict=True)]
            for name, side in sides.items()
        },
    }


def note(pair: Pair) -> str:
    """The conditions, under the picture."""
    shape, told = pair.shape, machine.describe()
    size = f"{shape.layers} layers of {shape.width}, {pair.rwkv_parameters / 1e6:.1f} M parameters, all in fp32"
    place = f"ONNX Runtime on {told.cpu}, {told.cores} cores, threads: {threads.requested() or 'all'}"
    return f"{size}; {place}; {shape.kv_heads} of {shape.heads} heads cached"


def parsed() -> tuple[Path, Choices]:
    """Where to write and what to run; exits with argparse's own message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few positions, to try the script")
    for field in fields(Choices):
        flag, told = f"--{field.name.replace('_', '-')}", f"{HELP[field.name]} (default: {field.default})"
        parser.add_argument(flag, type=int, help=told)
    given = vars(parser.parse_args())
    out, base = given.pop("out"), QUICK if given.pop("quick") else Choices()
    choices = replace(base, **{name: value for name, value in given.items() if value is not None})
    if not 0 < choices.window < choices.every <= choices.tokens:
        parser.error("0 < --window < --every <= --tokens does not hold")
    return out, choices


def benchmark(out: Path, choices: Choices) -> None:
    """Make, measure, write and print."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".models-") as folder:
        os.environ |= {"XDG_CACHE_HOME": folder, "MPLCONFIGDIR": folder}  # exporting and drawing leave notes there
        pair = prepared(Path(folder), choices)
        run = decode(pair, choices)
        write_text_atomically(out / "flat_line.json", json.dumps(document(pair, run, choices), indent=1) + "\n")
        times = medians(run.rwkv), medians(run.transformer)
        memory = megabytes(run.rwkv), megabytes(run.transformer)
        figure.draw(out / "flat_line.png", run.positions, milliseconds=times, megabytes=memory, note=note(pair))
    stdout().print(table(run))
    print(*sentences(run), sep="\n")
    if run.busy > BUSY:
        remark(f"other programs kept the processors {run.busy:.0%} busy: run it again at a quiet time", quiet=False)


def main() -> None:
    try:
        benchmark(*parsed())
    except (RwkvExportError, OSError) as error:
        raise SystemExit(failure.report(error)) from error


if __name__ == "__main__":
    main()
