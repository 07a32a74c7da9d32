"""The demo: the bundled model through every step, on targets that any computer can run; computes nothing itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.progress import Progress
    from validation.outcome import Results

PLAN = {
    "fp32": ("onnx-cpu", "coreml", "executorch-xnnpack"),
    "fp16": ("coreml",),
    "int8": ("onnx-cpu",),
    "int4": ("onnx-cpu",),
}
"""Precision -> targets."""

PROMPT = "The "


@dataclass(frozen=True)
class Demo:
    """What a demo made; `page` is the report."""

    artifacts: tuple[Path, ...]
    results: Results
    page: Path


def demo(out: Path = Path("out/demo"), *, progress: Progress) -> Demo:
    """Export the bundled model, validate and measure every artifact, write out/results.json and out/report.html.

    Runs them where they were made for. What is there from an earlier or interrupted run is replaced. Raises what
    exporting raises; an artifact that cannot run is a row of the results.
    """
    import exporter
    from rwkv_export.results import write_page
    from validation import measure, outcome, validate

    artifacts = tuple(
        chain.from_iterable(
            exporter.export(targets=targets, precision=precision, out=out, progress=progress)
            for precision, targets in PLAN.items()
        )
    )
    parity = validate(artifacts, progress=progress)
    latency = measure(artifacts, progress=progress)
    results = replace(parity, latency=latency.latency)
    outcome.write(results, out / "results.json")
    write_page([out / "results.json"], out / "report.html")
    return Demo(artifacts, results, out / "report.html")


def sample(artifact: Path) -> Iterator[str]:
    """A few lines of text by an artifact, piece by piece, the same every time."""
    from runtimes.generate import continue_text

    yield PROMPT
    yield from continue_text(artifact, PROMPT, tokens=200, temperature=0.8, seed=0)
