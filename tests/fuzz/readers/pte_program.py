"""ExecuTorch programs, parsed whole, and what is asked of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runtimes.mil import from_pte
from runtimes.pte.program import Program
from tests.fuzz.readers import pte_plan

METHOD, DELEGATE = "forward", "XnnpackBackend"


def seeds(folder: Path) -> Iterator[bytes]:
    yield from pte_plan.seeds(folder)


def read(data: bytes, folder: Path) -> None:
    path = folder / "model.pte"
    path.write_bytes(data)
    program = Program(path)
    program.calls(METHOD)
    program.arguments(METHOD, DELEGATE)
    program.blob(METHOD)
    from_pte.call(program, METHOD)
