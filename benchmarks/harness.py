"""Measures what `bench` adds to a step: its decode loop beside a bare loop over ONNX Runtime, in turns.

    python benchmarks/harness.py --out out/harness.json

Both loops drive one ONNX Runtime session of one random RWKV-7 and generate the same tokens. The model is made in a
folder that is removed; --out is all that is written. RWKV_EXPORT_THREADS=1 gives both one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

import exporter
from exporter.synth import SIZES, synth
from runtimes import manifest, threads
from runtimes.backends import ort
from runtimes.buffers import Pool
from runtimes.contract import Placement
from runtimes.errors import CheckFailed, RwkvExportError
from runtimes.files import write_text_atomically
from runtimes.huge_pages import huge_pages
from runtimes.session import explicit_session
from rwkv_export import failure
from rwkv_export.output import remark, stderr
from validation import latency, machine

LIMIT = 0.02
"""Share of a step that the harness may cost."""
BUSY = 0.1
NAMED = {
    "call": "the timed call, which is the sample",
    "token": "a whole token of the loop",
    "cpu": "processor time of a token",
}
WARM_UP = 8


@dataclass(frozen=True)
class Choices:
    """What is measured: the model, and how often each loop decodes how many tokens."""

    size: str = "0.1b"
    precision: str = "int8"
    rounds: int = 30
    tokens: int = 32


@dataclass(frozen=True)
class Loop:
    """One turn of one loop: median milliseconds of its timed calls; milliseconds a token of the whole, and of those its
    processor time, which other programs disturb least.
    """

    call_ms: float
    token_ms: float
    cpu_ms: float


class Bare:
    """What a program of a few lines does: two states bound once; a token written, the session run, argmax."""

    def __init__(self, session: Any, document: manifest.Manifest) -> None:
        self._session = session
        step = next(graph for graph in document.graphs if graph.tokens == 1)
        self._token = np.zeros(1, step.input_dtype)
        self._logits = np.zeros((1, document.model.vocab), np.float32)
        self._states = [[tensor.spec().initial() for tensor in document.state] for _ in range(2)]  # bound by address
        self._bindings = [self._bound(document, step, *pair) for pair in (self._states, self._states[::-1])]

    def _bound(self, document: manifest.Manifest, step: manifest.Graph, before: list[Any], after: list[Any]) -> Any:
        binding = self._session.io_binding()
        names = [(tensor.input, tensor.output) for tensor in document.state]
        inputs = [(step.input, self._token), *((name, array) for (name, _), array in zip(names, before, strict=True))]
        outputs = [(step.output, self._logits), *((name, array) for (_, name), array in zip(names, after, strict=True))]
        for bind, ports in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array in ports:
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding

    def decode(self, token: int, tokens: int) -> tuple[list[int], list[float], float]:
        """The tokens that followed, the seconds of each call and of all."""
        chosen, seconds, begun = [], [], time.perf_counter()
        for _ in range(tokens):
            self._token[0] = token
            before = time.perf_counter()
            self._session.run_with_iobinding(self._bindings[0])
            seconds.append(time.perf_counter() - before)
            self._bindings.reverse()
            token = int(self._logits.argmax())
            chosen.append(token)
        return chosen, seconds, time.perf_counter() - begun


def prepared(folder: Path, choices: Choices) -> Path:
    """The artifact of a random model."""
    checkpoint = synth("7", size=choices.size, out=folder / "model.pth")
    (artifact,) = exporter.export(checkpoint, targets=["onnx-cpu"], precision=choices.precision, out=folder)
    return artifact


def measure(folder: Path, choices: Choices) -> list[dict[str, Loop]]:
    """Rounds of both loops; which goes first changes from round to round."""
    artifact = manifest.open_artifact(folder)
    document = artifact.manifest
    graph = next(graph for graph in document.graphs if graph.tokens == 1)
    with huge_pages():
        loaded = ort._load(folder / graph.file, document, "cpu")  # both loops on one session: its memory is the same
    run = ort._runner(loaded, graph, document, Pool([tensor.spec() for tensor in document.state]))
    session = explicit_session(artifact, {1: run}, lambda: Placement("ort:cpu", "ort:cpu"))
    bare = Bare(loaded, document)
    step, (chosen, _, _) = session.step(0, session.initial_state()), bare.decode(0, 1)
    follow(chosen, [int(step.logits.argmax())])

    def ours() -> Loop:
        nonlocal step
        begun = time.process_time()
        step, seconds, wall = latency.decode_greedily(session, step, choices.tokens)
        return loop(seconds, wall, time.process_time() - begun)

    def theirs() -> Loop:
        nonlocal chosen
        begun = time.process_time()
        chosen, seconds, wall = bare.decode(chosen[-1], choices.tokens)
        return loop(seconds, wall, time.process_time() - begun)

    sides: list[tuple[str, Callable[[], Loop]]] = [("bench", ours), ("bare", theirs)]
    rounds = []
    for number in track(range(-WARM_UP, choices.rounds), "decoding", console=stderr()):
        taken = {name: turn() for name, turn in sides}
        rounds += [taken] if number >= 0 else []
        sides.reverse()
    follow(chosen[-1:], [int(step.logits.argmax())])
    return rounds


def loop(seconds: list[float], wall: float, processor: float) -> Loop:
    each = 1000 / len(seconds)
    return Loop(1000 * statistics.median(seconds), wall * each, processor * each)


def follow(theirs: list[int], ours: list[int]) -> None:
    """Raises CheckFailed where the loops generated other tokens: one of them is no decode loop."""
    if theirs != ours:
        raise CheckFailed(f"the bare loop generated {theirs}, bench's {ours}")


def summary(rounds: list[dict[str, Loop]]) -> dict[str, Any]:
    """By how much bench's loop exceeds the bare one in the same round: median and quartiles over the rounds."""
    found: dict[str, Any] = {"limit": LIMIT}
    for name in NAMED:
        shares = [getattr(each["bench"], f"{name}_ms") / getattr(each["bare"], f"{name}_ms") - 1 for each in rounds]
        low, middle, high = statistics.quantiles(shares, n=4)
        found[name] = {"median": middle, "quartiles": [low, high]}
    found["holds"] = all(found[name]["median"] < LIMIT for name in ("call", "token"))
    return found


def sentences(rounds: list[dict[str, Loop]]) -> list[str]:
    facts, bare = summary(rounds), statistics.median(each["bare"].token_ms for each in rounds)
    lines = [
        f"{words}: {facts[name]['median']:+.2%} (quartiles {facts[name]['quartiles'][0]:+.2%} to "
        f"{facts[name]['quartiles'][1]:+.2%})"
        for name, words in NAMED.items()
    ]
    verdict = "below" if facts["holds"] else "not below"
    return [f"bench against a bare loop of {bare:.3g} ms a token:", *lines, f"{verdict} the limit of {LIMIT:.0%}"]


def benchmark(out: Path, choices: Choices) -> None:
    """Make, measure, write and print."""
    busy = machine.busy()
    with tempfile.TemporaryDirectory(prefix="harness-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # exporting leaves notes there
        rounds = measure(prepared(Path(folder), choices), choices)
    document = {
        "schema": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": asdict(machine.describe()),
        "busy": max(busy, machine.busy()),
        "threads": threads.requested() or "all",
        "choices": asdict(choices),
        "summary": summary(rounds),
        "rounds": [{name: asdict(side) for name, side in each.items()} for each in rounds],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(out, json.dumps(document, indent=1) + "\n")
    print(*sentences(rounds), sep="\n")
    if document["busy"] > BUSY:
        remark(f"other programs kept the processors {document['busy']:.0%} busy: run it at a quiet time", quiet=False)


def parsed() -> tuple[Path, Choices]:
    """Where to write and what to measure; exits with argparse's own message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=list(SIZES), default=Choices.size)
    parser.add_argument("--precision", default=Choices.precision)
    parser.add_argument("--rounds", type=int, default=Choices.rounds, help="at least 4")
    parser.add_argument("--tokens", type=int, default=Choices.tokens, help="of each loop in each round")
    given = vars(parser.parse_args())
    out, choices = given.pop("out"), replace(Choices(), **given)
    if choices.rounds < 4 or choices.tokens < 1:
        parser.error("there must be 4 rounds of 1 token, or more")
    return out, choices


def main() -> None:
    try:
        benchmark(*parsed())
    except (RwkvExportError, OSError) as error:
        raise SystemExit(failure.report(error)) from error


if __name__ == "__main__":
    main()
