"""Runs cells on this machine, one after another, each in a process of its own, so that a crash costs one cell."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from validation.matrix.plan import Cell


def run_here(cells: Sequence[Cell], run: Callable[[Cell], str], retries: int) -> Iterator[tuple[Cell, str | Exception]]:
    """Each cell with what `run` returned for it, or with the exception of the last of `retries` + 1 tries."""
    for cell in cells:
        yield cell, _tried(cell, run, retries)


def _tried(cell: Cell, run: Callable[[Cell], str], retries: int) -> str | Exception:
    for _ in range(retries):
        result = _once(cell, run)
        if not isinstance(result, Exception):
            return result
    return _once(cell, run)


def _once(cell: Cell, run: Callable[[Cell], str]) -> str | Exception:
    """Spawned rather than forked: a copy of a process with runtimes in it may hang."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(run, cell).result()
        except BrokenProcessPool:
            return RuntimeError("the process that ran it died; a runtime crashed, or memory ran out")
        except Exception as error:  # whatever a cell raises is that cell's, so that the others are not lost
            return error
