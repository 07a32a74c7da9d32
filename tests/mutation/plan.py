"""The list of faults, one TOML file an area in faults/; it plants none."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from runtimes.schema import from_plain

ROOT = Path(__file__).parents[2]
FAULTS = Path(__file__).with_name("faults")


@dataclass(frozen=True)
class Fault:
    """One mistake.

    was:     what stands in `file` once; becomes: what is put there
    tests:   those that must notice, by pytest's names
    """

    name: str
    file: str
    was: str
    becomes: str
    tests: tuple[str, ...]

    def planted(self, text: str) -> str:
        """The file's text with the fault in it; raises ValueError where the fault no longer applies."""
        if (count := text.count(self.was)) != 1:
            raise ValueError(f"{self.name}: {self.file} has {self.was!r} {count} times, expected once")
        return text.replace(self.was, self.becomes)


@dataclass(frozen=True)
class Area:
    """One file of faults."""

    fault: tuple[Fault, ...]


def read() -> list[Fault]:
    """All faults, by area; raises SchemaError naming what does not fit."""
    documents = [tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(FAULTS.glob("*.toml"))]
    return [fault for document in documents for fault in from_plain(Area, document).fault]
