"""Manifest.json of a Core ML package, which names the model's file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runtimes.mil.package import model_file
from tests.fuzz.readers import mil_program


def seeds(folder: Path) -> Iterator[bytes]:
    yield (mil_program.package(folder) / "Manifest.json").read_bytes()


def read(data: bytes, folder: Path) -> None:
    changed = mil_program.copy(mil_program.package(folder), folder)
    (changed / "Manifest.json").write_bytes(data)
    model_file(changed).read_bytes()
