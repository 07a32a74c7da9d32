"""Where things are printed: data on stdout, talk and progress on stderr; what is printed is decided elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import measure_renderables
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

if TYPE_CHECKING:
    from exporter.progress import Advance
    from exporter.progress import Progress as Talk

UNBOUNDED = 10_000
"""Columns of a console that is not a terminal: tables keep their natural width in pipes and files."""

NARROWEST = 16
"""Columns that a name gets at least, where a table folds names to fit."""


def plain_table(*columns: Column) -> Table:
    """The one form of table that commands print."""
    return Table(*columns, box=SIMPLE_HEAD, show_edge=False, header_style="bold", padding=(0, 1, 0, 0))


def stdout() -> Console:
    """For data: coloured and as wide as the terminal on a terminal, else plain and unwrapped."""
    return _console(sys.stdout)


def stderr() -> Console:
    """For talk."""
    return _console(sys.stderr)


def print_json(document: Any) -> None:
    """A dataclass tree, or what json.dumps takes, on stdout, as it would be in a file."""
    from runtimes.schema import to_plain

    print(json.dumps(to_plain(document), indent=2, allow_nan=False))


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


class _Console(Console):
    """Lets a terminal wrap the lines of a table that it is too narrow for; rich would cut columns, some to nothing."""

    def print(self, *objects: Any, **options: Any) -> None:
        before = self.width
        self.width = max([before, *(self._needed(each) for each in objects if isinstance(each, Table))])
        super().print(*objects, **options)
        self.width = before

    def _needed(self, table: Table) -> int:
        """Columns that the table takes: none in particular where folding its names makes it fit."""
        natural = self._natural(table)
        for column in (folding := [column for column in table.columns if not column.no_wrap]):
            column.min_width = column.max_width = NARROWEST
        least = self._natural(table)
        for column in folding:
            column.min_width = column.max_width = None
        return natural if least > self.width else 0

    def _natural(self, table: Table) -> int:
        return measure_renderables(self, self.options.update(max_width=UNBOUNDED), [table]).maximum


def _console(stream: TextIO) -> Console:
    terminal = stream.isatty()
    width = None if terminal else UNBOUNDED
    return _Console(file=stream, force_terminal=terminal, width=width, highlight=False, markup=False)
