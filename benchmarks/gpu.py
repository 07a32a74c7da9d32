"""Parity and speed on an NVIDIA GPU, by CUDA and WebGPU, and on the CPU beside it, at real sizes with random weights.

    python benchmarks/gpu.py --out results/gpu.json

Writes --out, a results file, and what it is held to beside it (.limit.json): how fast the card copies its own memory,
and the bytes that a token reads of each artifact. Every artifact is made and measured in a process of its own, what is
done is written at once, and what fails is a row that says why. Checkpoints and artifacts stay in --cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import NamedTuple

from exporter import export
from exporter.synth import SIZES, synth
from runtimes import manifest
from runtimes.files import write_text_atomically
from validation import bandwidth, machine, measure, outcome, validate
from validation.outcome import Results

MADE = {
    "torch": ("fp32", "fp16", "bf16"),
    "onnx-webgpu": ("fp32", "fp16", "int8", "int4"),
    "onnx-cpu": ("fp32", "int8", "int4"),
}
PLACES = {
    "torch": ("eager:cuda", "eager:cpu"),
    "onnx-webgpu": ("ort:cuda", "ort:webgpu", "ort:cpu"),
    "onnx-cpu": ("ort:cpu",),
}
QUALITY_TOKENS = 16  # random weights predict no text; the reading is not kept
PATIENCE = 400.0  # seconds for one process
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
GIB = 1 << 30


class Cell(NamedTuple):
    """One artifact in one place."""

    size: str
    target: str
    precision: str
    place: str

    def folder(self, cache: Path) -> Path:
        """The artifact's."""
        return cache / f"{self.size}.{self.target}.{self.precision}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["0.1b", "1.5b"], choices=list(SIZES))
    parser.add_argument("--places", nargs="+", default=["eager:cuda", "ort:cuda", "ort:webgpu", "eager:cpu", "ort:cpu"])
    parser.add_argument(
        "--artifacts", nargs="+", default=["*"], help="patterns of their names, such as '*.onnx-cpu.int8'"
    )
    parser.add_argument("--steps", type=int, default=32, help="tokens compared, free and from the reference's states")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prefill graph, and of a timed prompt")
    parser.add_argument("--tokens", type=int, default=128, help="timed tokens")
    parser.add_argument("--cache", type=Path, default=Path("build/gpu"))
    parser.add_argument("--out", type=Path, default=Path("build/gpu/results.json"))
    parser.add_argument("--make", nargs=3, metavar=("SIZE", "TARGET", "PRECISION"), help=argparse.SUPPRESS)
    parser.add_argument("--check", nargs="+", metavar="FOLDER@PLACE", help=argparse.SUPPRESS)
    parser.add_argument("--time", metavar="FOLDER@PLACE", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.make:
        size, target, precision = asked.make
        make(size, target, precision, asked.prompt, asked.cache)
    elif asked.check:
        outcome.write(check(asked.check, asked.steps), asked.out)
    elif asked.time:
        folder, _, place = asked.time.partition("@")
        outcome.write(measure([Path(folder)], on=[place], prompt=asked.prompt, tokens=asked.tokens), asked.out)
    else:
        run(asked)


def run(asked: argparse.Namespace) -> None:
    """Make all, then time and check cell by cell, the results so far always on disk."""
    read: dict[str, int] = {}
    limit = {"copy_bytes_per_second": copy_speed(), "decode_bytes": read}
    found = Results(outcome.SCHEMA, replace(machine.describe(), name=gpu_name()), made=machine.now())
    for size in asked.sizes:
        synth("7", size=size, out=checkpoint(size, asked.cache))
        made = [names for names in product([size], MADE, PRECISIONS) if wanted(asked, *names)]
        options = ["--prompt", str(asked.prompt), "--cache", str(asked.cache)]
        with ThreadPoolExecutor(max(1, machine.cores() // 2)) as several:
            list(several.map(lambda names, options=options: child("--make", *names, *options), made))
        cells = [Cell(*names, place) for place in asked.places for names in made if place in PLACES[names[1]]]
        cells = [cell for cell in cells if cell.folder(asked.cache).is_dir()]
        for cell in cells:
            read[cell.folder(asked.cache).name] = decode_bytes(cell, asked.cache)
        write_text_atomically(asked.out.with_suffix(".limit.json"), json.dumps(limit, indent=1) + "\n")
        found = _measured(asked, cells, found)


def wanted(asked: argparse.Namespace, size: str, target: str, precision: str) -> bool:
    """Whether there is such an artifact, it was asked for, and it would be measured anywhere."""
    named = any(fnmatch(f"{size}.{target}.{precision}", pattern) for pattern in asked.artifacts)
    return named and precision in MADE[target] and not set(PLACES[target]).isdisjoint(asked.places)


def _measured(asked: argparse.Namespace, cells: Sequence[Cell], found: Results) -> Results:
    """What was found, and what these cells give: speed first, one after another; then parity, all places at once."""
    for cell in cells:
        found = _joined(asked, found, _turn(asked, ["--time", at(cell, asked.cache)]))
    places = dict.fromkeys(cell.place for cell in cells)
    checks = [["--check", *(at(cell, asked.cache) for cell in cells if cell.place == place)] for place in places]
    with ThreadPoolExecutor(len(asked.places)) as several:
        share = str(max(1, machine.cores() // len(asked.places)))
        for part in several.map(lambda check: _turn(asked, check, share), checks):
            found = _joined(asked, found, part)
    return found


def _turn(asked: argparse.Namespace, turn: list[str], threads: str = "") -> Results:
    """What a process of its own finds, with a number of threads that is not the machine's if that is said."""
    work = asked.cache / f"part.{turn[-1].rpartition('@')[2].replace(':', '.')}.json"
    work.unlink(missing_ok=True)
    options = [f"--{name}={getattr(asked, name)}" for name in ("steps", "prompt", "tokens")]
    child(*turn, *options, "--out", str(work), threads=threads)
    return outcome.read(work) if work.is_file() else Results(outcome.SCHEMA, machine.describe())


def _joined(asked: argparse.Namespace, found: Results, part: Results) -> Results:
    """Both, which are written too."""
    found = replace(found, parity=found.parity + part.parity, latency=found.latency + part.latency)
    outcome.write(found, asked.out)
    return found


def child(*arguments: str, threads: str = "") -> None:
    """This script again; what it says is shown, what becomes of it too."""
    started = time.monotonic()
    few = {"OMP_NUM_THREADS": threads, "RWKV_EXPORT_THREADS": threads} if threads else {}
    try:
        command = [sys.executable, __file__, *arguments]
        done = subprocess.run(command, check=False, timeout=PATIENCE, env=os.environ | few)
        became = "" if done.returncode == 0 else f", exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        became = ", stopped"
    print(f"{' '.join(arguments[:4])}: {time.monotonic() - started:.0f} s{became}", flush=True)


def make(size: str, target: str, precision: str, prompt: int, cache: Path) -> None:
    """Export one artifact, unless it is there."""
    if (cache / f"{size}.{target}.{precision}").is_dir():
        return
    export(checkpoint(size, cache), targets=[target], precision=precision, prefill=[prompt], out=cache)


def check(cells: Sequence[str], steps: int) -> Results:
    """Parity of artifacts in one place, against one recording of their checkpoint."""
    folders, places = zip(*(cell.split("@") for cell in cells), strict=True)
    found = validate([Path(folder) for folder in folders], on=places[:1], steps=steps, quality_tokens=QUALITY_TOKENS)
    return replace(found, quality=())


def at(cell: Cell, cache: Path) -> str:
    """The cell as an argument."""
    return f"{cell.folder(cache)}@{cell.place}"


def checkpoint(size: str, cache: Path) -> Path:
    """Where the random weights of a size are."""
    return cache / f"{size}.safetensors"


def decode_bytes(cell: Cell, cache: Path) -> int:
    """Bytes that a token takes from memory: all weights but the embedding, the state read and written."""
    folder = cell.folder(cache)
    document = manifest.read(folder)
    state = 2 * sum(tensor.spec().nbytes for tensor in document.state)
    if cell.target != "torch":
        return state + bandwidth.bytes_per_token(folder, next(graph for graph in document.graphs if graph.tokens == 1))
    table = document.model.vocab * document.model.width * (4 if cell.precision == "fp32" else 2)
    return int((folder / "decode.pt2").stat().st_size - table + state)


def copy_speed() -> float:
    """Bytes a second, read and written, of a copy on the GPU far larger than any cache: the median of 20."""
    import torch

    source = torch.arange(GIB // 2, dtype=torch.int64, device="cuda")
    target, seconds = torch.empty_like(source), []
    for _ in range(25):
        torch.cuda.synchronize()
        before = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - before)
    return 2 * source.nbytes / statistics.median(seconds[5:])


def gpu_name() -> str:
    """What the driver calls the card."""
    import torch

    return torch.cuda.get_device_name(0)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
