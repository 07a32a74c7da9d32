"""Parity and speed on an NVIDIA GPU: CUDA and WebGPU, at real sizes with random weights, beside the card's own limit.

    python benchmarks/gpu.py --out results/gpu.json

Writes --out, a results file, and what it is held to beside it (.limit.json): how fast this card copies its own memory,
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
from pathlib import Path
from typing import NamedTuple

from exporter import export
from exporter.synth import SIZES, synth
from runtimes import manifest
from runtimes.files import write_text_atomically
from validation import machine, measure, outcome, validate
from validation.outcome import Results

MADE = (("torch", "fp32", 4.0), ("torch", "fp16", 2.0), ("torch", "bf16", 2.0), ("onnx-webgpu", "fp32", 4.0))
MADE += (("onnx-webgpu", "fp16", 2.0), ("onnx-webgpu", "int8", 1.125), ("onnx-webgpu", "int4", 1.125))
"""Targets and precisions, with the bytes of a number in the embedding table, of which a token reads one row."""
PLACES = {"torch": ("eager:cuda",), "onnx-webgpu": ("ort:webgpu", "ort:cuda")}
QUALITY_TOKENS = 16  # random weights predict no text; the reading is not kept
PATIENCE = 400.0  # seconds for one process
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
    parser.add_argument("--places", nargs="+", default=["eager:cuda", "ort:webgpu", "ort:cuda"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "fp16", "bf16", "int8", "int4"])
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
        make(*asked.make, asked.prompt, asked.cache)
    elif asked.check:
        outcome.write(check(asked.check, asked.steps), asked.out)
    elif asked.time:
        folder, _, place = asked.time.partition("@")
        outcome.write(measure([Path(folder)], on=[place], prompt=asked.prompt, tokens=asked.tokens), asked.out)
    else:
        run(asked)


def run(asked: argparse.Namespace) -> None:
    """Make all, then check and time cell by cell, the results so far always on disk."""
    limit = {"copy_bytes_per_second": copy_speed(), "decode_bytes": {}}
    found = Results(outcome.SCHEMA, replace(machine.describe(), name=gpu_name()))
    for size in asked.sizes:
        synth("7", size=size, out=checkpoint(size, asked.cache))
        made = [(size, target, precision) for target, precision, _ in MADE if wanted(asked, target, precision)]
        options = ["--prompt", str(asked.prompt), "--cache", str(asked.cache)]
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as several:
            list(several.map(lambda names, options=options: child("--make", *names, *options), made))
        cells = [Cell(*names, place) for names in made for place in PLACES[names[1]] if place in asked.places]
        cells = [cell for cell in cells if cell.folder(asked.cache).is_dir()]
        for cell in cells:
            limit["decode_bytes"][cell.folder(asked.cache).name] = decode_bytes(cell, asked.cache)
        write_text_atomically(asked.out.with_suffix(".limit.json"), json.dumps(limit, indent=1) + "\n")
        found = _measured(asked, cells, found)


def wanted(asked: argparse.Namespace, target: str, precision: str) -> bool:
    """Whether an artifact would be measured anywhere."""
    return precision in asked.precisions and not set(PLACES[target]).isdisjoint(asked.places)


def _measured(asked: argparse.Namespace, cells: Sequence[Cell], found: Results) -> Results:
    """What was found, and what these cells give: speed first, one after another; then one reference for each place."""
    work = asked.cache / "part.json"
    turns = [["--time", at(cell, asked.cache)] for cell in cells]
    for place in dict.fromkeys(cell.place for cell in cells):
        turns.append(["--check", *(at(cell, asked.cache) for cell in cells if cell.place == place)])
    for turn in turns:
        work.unlink(missing_ok=True)
        options = [f"--{name}={getattr(asked, name)}" for name in ("steps", "prompt", "tokens")]
        child(*turn, *options, "--out", str(work))
        if work.is_file():
            part = outcome.read(work)
            found = replace(found, parity=found.parity + part.parity, latency=found.latency + part.latency)
            outcome.write(found, asked.out)
    return found


def child(*arguments: str) -> None:
    """This script again; what it says is shown, what becomes of it too."""
    started = time.monotonic()
    try:
        done = subprocess.run([sys.executable, __file__, *arguments], check=False, timeout=PATIENCE)
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
    """Bytes that a token takes from memory: all weights but the embedding's other rows, the state read and written."""
    folder = cell.folder(cache)
    document = manifest.read(folder)
    data = folder / ("decode.pt2" if cell.target == "torch" else "model.onnx.data")
    row = next(bytes_ for target, precision, bytes_ in MADE if (target, precision) == (cell.target, cell.precision))
    table = document.model.vocab * document.model.width * row
    return int(data.stat().st_size - table + 2 * sum(tensor.spec().nbytes for tensor in document.state))


def copy_speed() -> float:
    """Bytes a second, read and written, of a copy far larger than any cache: the median of 20."""
    import torch

    source = torch.empty(4 * GIB, dtype=torch.uint8, device="cuda").random_(0, 255)
    target, seconds = torch.empty_like(source), []
    for _ in range(25):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return 2 * source.numel() / statistics.median(seconds[5:])


def gpu_name() -> str:
    """What the driver calls the card."""
    import torch

    return torch.cuda.get_device_name(0)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
