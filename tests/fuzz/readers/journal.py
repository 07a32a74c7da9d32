"""The journal that a killed export left; whatever is in it, an export goes on or begins anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from exporter import journal
from exporter.journal import Note

JOB = {"checkpoint": "0"}


def seeds(folder: Path) -> Iterator[bytes]:
    lines = [json.dumps(JOB), *(json.dumps(asdict(Note("data", name, 0, 4, 0))) for name in "ab")]
    yield "\n".join(lines).encode() + b"\n"


def read(data: bytes, folder: Path) -> None:
    hidden = folder / "hidden"
    hidden.mkdir(exist_ok=True)
    (hidden / journal.FILE).write_bytes(data)
    journal.can_continue(hidden)
    journal.begin(hidden, JOB)
