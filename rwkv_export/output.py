"""Where things are printed: data on stdout, talk and progress on stderr; what is printed is decided elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from exporter.progress import Advance
    from exporter.progress import Progress as Talk

UNBOUNDED = 10_000
"""Columns of a console that is not a terminal: tables keep their natural width in pipes and files."""


def stdout() -> Console:
    """For data: coloured and as wide as the terminal on a terminal, else plain and unwrapped."""
    return _console(sys.stdout)


def stderr() -> Console:
    """For talk."""
    return _console(sys.stderr)


def print_json(document: Any) -> None:
    """A dataclass tree, or what json.dumps takes, on stdout."""
    from runtimes.schema import to_plain

    print(json.dumps(to_plain(document), indent=2))


def remark(text: str, *, quiet: bool) -> None:
    """A line of talk on stderr."""
    if not quiet:
        stderr().print(text, soft_wrap=True)


def stream(pieces: Iterable[str]) -> None:
    """Text on stdout, each piece as it comes, and a line end."""
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


@contextmanager
def talking(quiet: bool) -> Iterator[Talk]:
    """A progress callback: bars on a terminal, one line a task elsewhere, nothing when quiet.

    What an interruption carries as notes is printed last.
    """
    try:
        with _progress(quiet) as progress:
            yield progress
    except KeyboardInterrupt as interrupt:
        for note in getattr(interrupt, "__notes__", ()):
            remark(note, quiet=quiet)
        raise


@contextmanager
def _progress(quiet: bool) -> Iterator[Talk]:
    console = stderr()
    if quiet:
        from exporter.progress import silent

        yield silent
    elif not console.is_terminal:
        yield _line_a_task
    else:
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), *times)
        with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bars:
            yield _Bars(bars)


class _Bars:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars

    @contextmanager
    def __call__(self, text: str, total: int | None = None) -> Iterator[Advance]:
        task = self._bars.add_task(text, total=total)
        try:
            yield lambda amount: self._bars.advance(task, amount)
        finally:
            self._bars.remove_task(task)


@contextmanager
def _line_a_task(text: str, total: int | None = None) -> Iterator[Advance]:
    print(text, file=sys.stderr, flush=True)
    yield lambda amount: None


def _console(stream: TextIO) -> Console:
    terminal = stream.isatty()
    width = None if terminal else UNBOUNDED
    return Console(file=stream, force_terminal=terminal, width=width, highlight=False, markup=False)
