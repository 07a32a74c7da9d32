"""model.mlmodel as the linter reads it, more leniently than the interpreter, and every rule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runtimes.mil.package import model_file
from tests.fuzz.readers import mil_program
from validation.lint import linter


def seeds(folder: Path) -> Iterator[bytes]:
    yield from mil_program.seeds(folder)


def read(data: bytes, folder: Path) -> None:
    changed = mil_program.copy(mil_program.package(folder), folder)
    model_file(changed).write_bytes(data)
    linter.lint_package(changed)
