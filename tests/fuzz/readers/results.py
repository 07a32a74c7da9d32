"""Results files, as `report` and `compare` read them, and the page about them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from runtimes.schema import to_plain
from validation import outcome
from validation.outcome import (
    Bound,
    Identity,
    Latency,
    Machine,
    Outcome,
    Parity,
    Quality,
    Reading,
    Results,
    Samples,
    TextReading,
)
from validation.reports import junit, markdown

IDENTITY = Identity("tiny.onnx-cpu.fp32", "tiny", "7", "onnx-cpu", "fp32", "ort:cpu", "ort:cpu", {"CPU": 3}, "run")
READING = Reading((0.1, 0.2), (0.1, 0.1), (60.0, None), (1e-9, 0.0), 1.0, 1.0, None, {"wkv": 0.1}, {"wkv": 0.1})
BOUND = Bound("fp32", 1e-3, 1e-6, 0.98, 1e-3, "rounding", text_kl=0.1, itself="fp32", kernel="fp32")


def document() -> Results:
    """A row of each kind."""
    samples = Samples((0.001, 0.002), 1.5, 2.0, 2.0, 0.5, 1.0, 1)
    reading = TextReading(10, 12, 0.01, 0.02, 3.0, 2.9, 0.9)
    return Results(
        outcome.SCHEMA,
        Machine("Linux", "a CPU", 2, 1 << 30, "", "3.11", {"torch": "2"}),
        parity=(Parity(IDENTITY, Outcome.PASS, (), 2, BOUND, READING, READING, {"4": 0.1}),),
        latency=(Latency(IDENTITY, Outcome.FALLBACK, ("elsewhere",), 0.1, 0.1, samples, samples, 9, 9, 9, ("hot",)),),
        quality=(Quality(IDENTITY, Outcome.FAIL, ("bad",), "book.txt", BOUND, reading, 9, 9),),
        made="2026-11-22T09:30:00Z",
    )


def seeds(folder: Path) -> Iterator[bytes]:
    yield json.dumps(to_plain(document()), separators=(",", ":")).encode()


def read(data: bytes, folder: Path) -> None:
    path = folder / "results.json"
    path.write_bytes(data)
    results = outcome.read(path)
    junit.render(results)
    markdown.render(results)
