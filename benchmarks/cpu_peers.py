"""Compares our artifacts on the CPU with llama.cpp and rwkv.cpp: the same random RWKV-7, asked in turn.

    python benchmarks/cpu_peers.py --out results.json --plot peers.png
    python benchmarks/cpu_peers.py --size tiny --presets fp16 --prompt 16 --rounds 2      # seconds: does it work here?

For every size and number of threads all engines are loaded, each in a process of its own, and checked against our
float32 reference. Then, round by round, each is asked to decode, one after the other, then to take a prompt, and so
on. Tokens a second are compared within a round; what is printed is the median and the range of those ratios.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peers import bandwidth, llama, plot, report, rwkvcpp
from peers.contract import LLAMA, MINE, PAIRS, RWKV_CPP, Absent, Bandwidth, Conversion, Kind, Row
from peers.measuring import REPEATS, Setting, compare, judge_conversion, reference_logits, tell
from peers.ours import Ours, source_digest
from peers.stats import Ratio, ratios
from rich.console import Console

from exporter.synth import SIZES, synth
from runtimes.errors import Missing, RwkvExportError, did_you_mean
from runtimes.files import write_text_atomically
from runtimes.schema import to_plain
from validation import machine
from validation.outcome import Machine

LONGEST = 8192  # tokens of a prompt, or of one decode: what llama.cpp's context is set to
QUIET = 0.15  # share of the processors that may be busy before we start


@dataclass(frozen=True)
class Document:
    """The results file. `ratios` are computed from `rows`, which hold every sample."""

    date: str
    machine: Machine
    busy: float
    arguments: dict[str, Any]
    builds: dict[str, list[str]]
    exporter_sha256: str
    bandwidth: list[Bandwidth]
    conversions: list[Conversion]
    rows: list[Row]
    ratios: list[Ratio]
    warnings: list[str]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Close other programs first: on a busy machine the ranges say more than the medians.",
    )
    add = made.add_argument
    add("--size", type=names(SIZES), default="0.1b,0.4b", help="sizes of the model, by commas (0.1b,0.4b)")
    add("--threads", type=numbers(256), default="1,2", help="numbers of threads, by commas (1,2)")
    add(
        "--presets",
        type=names(PAIRS),
        default="int8,int4",
        help="our precisions, by commas (int8,int4); also fp32, fp16, int4-b128, int4-int8",
    )
    add("--prompt", type=numbers(LONGEST), default="64,256,512", help="lengths of prompts, by commas (64,256,512)")
    add("--tokens", type=count(LONGEST), default="48", help="tokens decoded in a round (48)")
    add("--rounds", type=count(1000), default="5", help="rounds, beside one to warm up (5)")
    add("--out", type=Path, help="write machine, versions, every sample and the ratios to this JSON file")
    add("--plot", type=Path, help="draw the speeds to this file: .png, .svg or .pdf")
    add("--llama", type=Path, help=f"build directory of llama.cpp ({llama.VARIABLE}); without one it is built: minutes")
    add("--rwkv-cpp", type=Path, help=f"built checkout of rwkv.cpp ({rwkvcpp.VARIABLE}); without one it is left out")
    add(
        "--cache", type=Path, default=Path("build/peers"), help="models, artifacts and builds are kept in (build/peers)"
    )
    add("--no-amx", action="store_true", help="build llama.cpp without AMX, where its AMX code crashes")
    add("--huge-pages", action="store_true", help="give the peers' heaps 2 MiB pages too (Linux)")
    return made


def names(known: Collection[str]) -> Callable[[str], list[str]]:
    """Reads names by commas; argparse shows the error."""

    def read(text: str) -> list[str]:
        words = list(dict.fromkeys(word.strip() for word in text.split(",")))
        for word in words:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} is unknown: {did_you_mean(word, known)}")
        return words

    return read


def count(most: int) -> Callable[[str], int]:
    """Reads a number between 1 and `most`."""

    def read(text: str) -> int:
        if not text.strip().isdecimal() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {most}")
        return int(text)

    return read


def numbers(most: int) -> Callable[[str], list[int]]:
    """Reads numbers by commas."""
    return lambda text: list(dict.fromkeys(count(most)(word) for word in text.split(",")))


def find_kinds(arguments: argparse.Namespace) -> list[Kind]:
    """llama.cpp, ours in all places, rwkv.cpp, asked in this order; a peer that is not here says why in its rows.

    Raises Missing for one that was named in the arguments and cannot be used.
    """
    cache, huge, amx = arguments.cache, arguments.huge_pages, not arguments.no_amx
    named, checkout = arguments.llama, arguments.rwkv_cpp
    return [
        _or_absent(LLAMA, named, lambda: llama.Llama(llama.find(named, cache, amx=amx), cache, huge_pages=huge)),
        *(Ours(cache, name) for name in MINE),
        _or_absent(RWKV_CPP, checkout, lambda: rwkvcpp.RwkvCpp(rwkvcpp.find(checkout), cache, huge_pages=huge)),
    ]


def _or_absent(name: str, named: Path | None, make: Callable[[], Kind]) -> Kind:
    try:
        return make()
    except Missing as reason:
        if named:
            raise
        return Absent(name, reason)


def requests(prompts: Sequence[int], tokens: int) -> dict[str, str]:
    """What is measured, and how it is asked for."""
    return {"decode": f"decode {tokens}"} | {f"prefill {n}": f"prefill {n} {REPEATS}" for n in prompts}


def run(arguments: argparse.Namespace, console: Console) -> Document:
    """Everything; the results file and the plot are written anew after every size and number of threads."""
    busy = machine.busy()
    if busy > QUIET:
        tell(f"warning: other programs use {busy:.0%} of the processors: expect wide ranges")
    arguments.cache.mkdir(parents=True, exist_ok=True)
    kinds = find_kinds(arguments)
    tell("measuring the memory")
    document = Document(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine.describe(),
        busy=busy,
        arguments={name: value for name, value in vars(arguments).items() if not isinstance(value, Path | None)},
        builds={kind.name: kind.describe() for kind in kinds if isinstance(kind, llama.Llama | rwkvcpp.RwkvCpp)},
        exporter_sha256=source_digest(),
        bandwidth=bandwidth.measure(arguments.threads, arguments.cache),
        conversions=[],
        rows=[],
        ratios=[],
        warnings=[],
    )
    report.show_start(document.bandwidth, console)
    for size in arguments.size:
        run_size(size, kinds, arguments, document, console)
    return document


def run_size(
    size: str, kinds: Sequence[Kind], arguments: argparse.Namespace, document: Document, console: Console
) -> None:
    """One checkpoint: conversions judged once, then every number of threads; fills the document."""
    checkpoint = arguments.cache / f"rwkv7-{size}.pth"
    if not checkpoint.exists():
        tell(f"{size}: making a random checkpoint")
        synth("7", size=size, out=checkpoint)
    tell(f"{size}: asking the float32 reference")
    reference = reference_logits(checkpoint, arguments.cache)
    asked = requests(arguments.prompt, arguments.tokens)
    settings = [
        Setting(size, threads, checkpoint, reference, asked, arguments.rounds, arguments.cache)
        for threads in arguments.threads
    ]
    conversions = [judge_conversion(kind, settings[0]) for kind in kinds if kind.name not in MINE]
    document.conversions.extend(conversions)
    report.show_conversions(conversions, console)
    for setting in settings:
        rows = compare(kinds, arguments.presets, conversions, setting)
        document.rows.extend(rows)
        document.ratios.extend(ratios(rows))
        document.warnings.extend(report.oddities(rows))
        report.show(rows, document.bandwidth, console)
        save(document, arguments.out, arguments.plot)


def save(document: Document, out: Path | None, picture: Path | None) -> None:
    """Write the results and the plot, where they are wanted."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(out, json.dumps(to_plain(document), indent=1) + "\n")
    if picture and any(row.missing is None for row in document.rows):
        picture.parent.mkdir(parents=True, exist_ok=True)
        plot.draw(document.rows, picture)


def main() -> int:
    arguments = parser().parse_args()
    console = Console()
    console.width = max(console.width, report.WIDTH)
    try:
        run(arguments, console)
    except RwkvExportError as error:
        print(f"error: {error.message}" + (f"\n\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
