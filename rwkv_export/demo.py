"""The demo: the bundled model through every step, on targets that any computer can run; computes nothing itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.contract import Progress
    from validation.outcome import Results

PLAN = {"fp32": ("onnx-cpu", "coreml", "executorch-xnnpack"), "fp16": ("coreml",)}
"""Precision -> targets."""

PROMPT = "The "


@dataclass(frozen=True)
class Demo:
    """What a demo made. `page` is the report; `text` continues PROMPT, by the first artifact."""

    artifacts: tuple[Path, ...]
    results: Results
    page: Path
    text: str


def demo(out: Path = Path("out/demo"), *, progress: Progress) -> Demo:
    """Export the bundled model, validate and measure every artifact, write out/results.json and out/report.html.

    An artifact runs where it was made for, or else in the first place that opens it on this machine. What is there
    from an earlier or interrupted run is replaced. Raises what exporting and opening raise.
    """
    import exporter
    from runtimes.generate import continue_text
    from rwkv_export.results import write_page
    from validation import measure, outcome, validate

    artifacts = tuple(
        chain.from_iterable(
            exporter.export(targets=targets, precision=precision, out=out, progress=progress)
            for precision, targets in PLAN.items()
        )
    )
    places = {folder: usable_place(folder) for folder in artifacts}
    checked = [validate([folder], on=[place], progress=progress) for folder, place in places.items()]
    timed = [measure([folder], on=[place], progress=progress) for folder, place in places.items()]
    results = joined([*checked, *timed])
    outcome.write(results, out / "results.json")
    write_page([out / "results.json"], out / "report.html")
    with progress("generating text"):
        pieces = continue_text(artifacts[0], PROMPT, on=places[artifacts[0]], tokens=200, temperature=0.8, seed=0)
        return Demo(artifacts, results, out / "report.html", "".join(pieces))


def usable_place(artifact: Path) -> str:
    """Where an artifact can run on this machine: the first "runtime:device" of its target that lacks nothing here.

    The place it was made for if there is none, so that running it says what is missing.
    """
    from exporter import registry as targets
    from runtimes import manifest
    from runtimes import registry as runtimes

    name = manifest.read(artifact).target.name
    target = targets.targets()[name]
    places = (f"{target.runtime}:{target.device}", *target.also_runs)
    for place in places:
        runtime, device = runtimes.parse(place)
        if runtimes.load(runtime).missing(device) is None:
            return place
    return places[0]


def joined(results: Iterable[Results]) -> Results:
    """The rows of several documents of one machine as one document."""
    first, *others = results
    for other in others:
        first = replace(first, parity=first.parity + other.parity, latency=first.latency + other.latency)
    return first
