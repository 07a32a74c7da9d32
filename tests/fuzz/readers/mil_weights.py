"""weight.bin of a Core ML package, read and expanded as its program says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.readers import mil_program


def seeds(folder: Path) -> Iterator[bytes]:
    yield _weights(mil_program.package(folder)).read_bytes()


def read(data: bytes, folder: Path) -> None:
    changed = mil_program.copy(mil_program.package(folder), folder)
    _weights(changed).write_bytes(data)
    mil_program.run(changed)


def _weights(path: Path) -> Path:
    (found,) = path.rglob("weight.bin")
    return found
