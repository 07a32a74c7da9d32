"""Sensitivity documents, and the list of matrices to keep that comes out of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from runtimes.schema import to_plain
from validation import sensitivity_results
from validation.sensitivity_results import Effect, Sensitivity, Subject


def seeds(folder: Path) -> Iterator[bytes]:
    subject = Subject("tiny", "7", "0", 64e-5, "onnx-cpu", "int4", "text", "0", 9, {"torch": "2"})
    effects = (Effect("head", "int4", 16, 8, 0.1, 0.2, 3.0, 0.9), Effect("blocks.0", "", 16, 8, 0.1, 0.2, 3.0, 0.9))
    document = Sensitivity(sensitivity_results.SCHEMA, subject, "all", 4, 0.1, 3.0, effects, ("head",))
    yield json.dumps(to_plain(document), separators=(",", ":")).encode()


def read(data: bytes, folder: Path) -> None:
    path = folder / "sensitivity.json"
    path.write_bytes(data)
    sensitivity_results.recommended(sensitivity_results.read(path))
