"""Measures how time and memory of an ONNX export grow with the model, and says what larger models would take.

    python benchmarks/export_scale.py --sizes 0.1b 0.4b 1.5b --precision int4

Each size is a checkpoint with random weights, exported by the command line in a process of its own. Checkpoints,
artifacts, <precision>.json and <precision>.png are written into --out; a size that the JSON has is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from exporter import versions
from exporter.synth import HEAD_SIZE, SIZES, Size
from runtimes.files import write_text_atomically
from rwkv_export.output import stderr, stdout
from validation import machine

MEASURED = [name for name in SIZES if name != "tiny"]
LARGER = {"32b": Size(64, 6400), "70b": Size(80, 8448)}  # no such model exists: shapes that have as many parameters
SAMPLE = 0.1  # seconds between two looks at a process
STATUS = {"peak_rss_bytes": "VmHWM", "peak_anonymous_bytes": "RssAnon"}  # of /proc/PID/status


@dataclass(frozen=True)
class Shape:
    """What time and memory may depend on."""

    parameters: int
    largest_tensor_bytes: int  # as float32, the form in which tensors are read


@dataclass(frozen=True)
class Run:
    """One export; peaks are of the resident set with and without the pages of mapped files."""

    parameters: int
    largest_tensor_bytes: int
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    peak_anonymous_bytes: int
    checkpoint_bytes: int
    artifact_bytes: int


def shape_of(size: Size) -> Shape:
    """From the layout of RWKV-7."""
    file = versions.load("7")
    dimensions = file.dimensions("7", layers=size.layers, width=size.width, head_size=HEAD_SIZE, vocab=size.vocab)
    counts = [int(np.prod(entry.shape)) for entry in file.layout("7", dimensions).values() if entry.official]
    return Shape(sum(counts), 4 * max(counts))


def measure(size: str, precision: str, out: Path) -> Run:
    """Make the checkpoint, if it is not there, and export it."""
    checkpoint, artifacts = out / f"v7-{size}.pth", out / f"artifact-{size}-{precision}"
    if not checkpoint.exists():
        subprocess.run([*command("synth"), "--size", size, "-o", str(checkpoint)], check=True, stdout=sys.stderr)
    shutil.rmtree(artifacts, ignore_errors=True)  # one that was stopped would continue
    start = time.perf_counter()
    chosen = ["-t", "onnx-cpu", "-p", precision, "-o", str(artifacts)]
    process = subprocess.Popen([*command("export"), str(checkpoint), *chosen], stdout=sys.stderr)
    peaks, usage = watch(process)
    seconds = time.perf_counter() - start
    shape = shape_of(SIZES[size])
    written = sum(path.stat().st_size for path in artifacts.rglob("*") if path.is_file())
    return Run(
        **asdict(shape),
        seconds=round(seconds, 2),
        cpu_seconds=round(usage.ru_utime + usage.ru_stime, 2),
        **peaks,
        checkpoint_bytes=checkpoint.stat().st_size,
        artifact_bytes=written,
    )


def command(name: str) -> list[str]:
    return [sys.executable, "-m", "rwkv_export", name]


def watch(process: subprocess.Popen[bytes]) -> tuple[dict[str, int], Any]:
    """Wait for a process; returns the largest of each STATUS and the resources it used."""
    peaks = dict.fromkeys(STATUS, 0)
    while True:
        done, code, usage = os.wait4(process.pid, os.WNOHANG)
        if done:
            break
        now = status(process.pid)
        peaks = {name: max(peak, now.get(STATUS[name], 0)) for name, peak in peaks.items()}
        time.sleep(SAMPLE)
    process.returncode = os.waitstatus_to_exitcode(code)
    if code:
        raise SystemExit(f"the export failed ({process.returncode})")
    if sys.platform == "linux":  # its ru_maxrss may be the parent's, from before the program was loaded
        return peaks, usage
    return peaks | {"peak_rss_bytes": usage.ru_maxrss}, usage


def status(pid: int) -> dict[str, int]:
    """Fields of /proc/PID/status in kB, as bytes; nothing where there is none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(value) * 1024 for name, value, _ in fields}


@dataclass(frozen=True)
class Line:
    """measure = fixed + each * cause, fitted so that the relative errors are least in the mean square."""

    measure: str
    cause: str
    fixed: float
    each: float

    def at(self, shape: Any) -> float:
        return self.fixed + self.each * float(getattr(shape, self.cause))


LINES = {
    "seconds": "parameters",
    "peak_rss_bytes": "largest_tensor_bytes",
    "checkpoint_bytes": "parameters",
    "artifact_bytes": "parameters",
}


def fit(runs: list[Run]) -> dict[str, Line]:
    """A line for each of LINES, through two runs at least."""
    lines = {}
    for measure, cause in LINES.items():
        x, y = (np.array([float(getattr(run, name)) for run in runs]) for name in (cause, measure))
        each, fixed = np.polyfit(x, y, 1, w=1 / y)
        lines[measure] = Line(measure, cause, float(fixed), float(each))
    return lines


def table(runs: dict[str, Run], lines: dict[str, Line]) -> Table:
    """A row for each size; those that were not measured are marked."""
    made = Table("size", "parameters", "time", "CPU time", "peak memory", "anonymous", "checkpoint", "artifact")
    for column in made.columns[1:]:
        column.justify = "right"
    for name, run in runs.items():
        sizes = (run.peak_rss_bytes, run.peak_anonymous_bytes, run.checkpoint_bytes, run.artifact_bytes)
        times = (run.seconds, run.cpu_seconds)
        made.add_row(name, f"{run.parameters / 1e9:.2f} B", *(f"{s:.0f} s" for s in times), *map(gigabytes, sizes))
    for name, size in LARGER.items() if lines else ():
        shape = shape_of(size)
        seconds, peak, checkpoint, artifact = (line.at(shape) for line in lines.values())
        row = (f"{seconds:.0f} s", "", gigabytes(peak), "", gigabytes(checkpoint), gigabytes(artifact))
        made.add_row(f"{name}, extrapolated", f"{shape.parameters / 1e9:.2f} B", *row, style="dim")
    return made


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def sentences(lines: dict[str, Line]) -> list[str]:
    """What is extrapolated, and from which fit."""
    time, memory = lines["seconds"], lines["peak_rss_bytes"]
    said = [
        f"time = {time.fixed:.0f} s + {time.each * 1e9:.0f} s for each 1e9 parameters; "
        f"peak = {gigabytes(memory.fixed)} + {memory.each:.1f} times the largest tensor as float32"
    ]
    for name, size in LARGER.items():
        shape = shape_of(size)
        disk = lines["checkpoint_bytes"].at(shape) + lines["artifact_bytes"].at(shape)
        said.append(
            f"{name} ({size.layers} layers of {size.width}, {shape.parameters / 1e9:.1f}e9 parameters) would take "
            f"{time.at(shape) / 60:.0f} minutes, {gigabytes(memory.at(shape))} of memory and {gigabytes(disk)} of disk"
        )
    return said


def plot(runs: dict[str, Run], lines: dict[str, Line], path: Path) -> None:
    """Time and peak memory against parameters, both axes logarithmic; hollow: extrapolated."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panes = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    shapes = [shape_of(size) for size in LARGER.values()]
    for pane, measure, unit, label in zip(
        panes, ("seconds", "peak_rss_bytes"), (1, 1e9), ("time of the export, s", "peak memory, GB"), strict=True
    ):
        pane.loglog(*columns(runs.values(), measure, unit), "o", label="measured")
        if lines:
            x, y = [s.parameters / 1e9 for s in shapes], [lines[measure].at(s) / unit for s in shapes]
            pane.loglog(x, y, "o", mfc="none", color="C0", label="extrapolated")
        pane.set(xlabel="parameters, 1e9", ylabel=label)
        pane.grid(alpha=0.3, which="both")
    panes[1].loglog(*columns(runs.values(), "checkpoint_bytes", 1e9), "--", color="C1", label="the checkpoint itself")
    panes[1].legend()
    figure.savefig(path, dpi=150)


def columns(runs: Any, measure: str, unit: float) -> tuple[list[float], list[float]]:
    return [run.parameters / 1e9 for run in runs], [getattr(run, measure) / unit for run in runs]


def save(runs: dict[str, Run], precision: str, path: Path) -> None:
    plain = {name: asdict(run) for name, run in runs.items()}
    document = {"machine": asdict(machine.describe()), "precision": precision, "runs": plain}
    write_text_atomically(path, json.dumps(document, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=MEASURED, default=MEASURED, help="default: all")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--out", type=Path, default=Path("build/scale"))
    parser.add_argument("--again", action="store_true", help="also measure what the JSON has")
    parser.add_argument("--clean", action="store_true", help="remove each checkpoint and artifact once it is measured")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    results = asked.out / f"{asked.precision}.json"
    known = json.loads(results.read_text())["runs"] if results.exists() else {}
    runs = {name: Run(**values) for name, values in known.items()}
    for size in asked.sizes:
        if asked.again or size not in runs:
            runs[size] = measure(size, asked.precision, asked.out)
            runs = {name: runs[name] for name in MEASURED if name in runs}
            save(runs, asked.precision, results)
        if asked.clean:
            (asked.out / f"v7-{size}.pth").unlink(missing_ok=True)
            shutil.rmtree(asked.out / f"artifact-{size}-{asked.precision}", ignore_errors=True)
    lines = fit(list(runs.values())) if len(runs) > 1 else {}
    stdout().print(table(runs, lines))
    for sentence in sentences(lines) if lines else ():
        stdout().print(sentence, soft_wrap=True)
    plot(runs, lines, results.with_suffix(".png"))
    stderr().print(f"{results} and {results.with_suffix('.png')} are written", soft_wrap=True)


if __name__ == "__main__":
    main()
