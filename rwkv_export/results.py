"""Delivers results: tables to stdout, files where asked, and the exit code; it judges nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from runtimes.errors import CheckFailed, Missing
from rwkv_export.options import STDOUT

if TYPE_CHECKING:
    from validation.outcome import Results
    from validation.rows import Keep


@contextmanager
def kept(json: Path | None, *, quiet: bool) -> Iterator[Keep]:
    """What keeps each row beside the results file `json` until the block ends; raises as `rows.Journal` does.

    Where the block raises, the rows stay: the results file was not written.
    """
    from rwkv_export.output import remark
    from validation.rows import Journal, forget

    if json in (None, STDOUT):
        yield forget
        return
    journal = Journal(json)
    if journal.stopped:
        remark(f"the rows of a run that was stopped are in {journal.stopped}; `report` reads them", quiet=quiet)
    try:
        yield journal.keep
    except BaseException:
        if left := journal.abandon():
            remark(f"the rows that were finished are in {left}; `report` reads them", quiet=quiet)
        raise
    journal.end()


def deliver(
    results: Results, *, json: Path | None = None, junit: Path | None = None, markdown: Path | None = None
) -> int:
    """Print the tables or the JSON, write the files that are named; returns the process's exit code."""
    from runtimes.files import write_text_atomically
    from rwkv_export import output, tables
    from validation import exit_code, outcome
    from validation.reports import junit as junit_report
    from validation.reports import markdown as markdown_report

    if json == STDOUT:
        output.print_json(results)
    else:
        tables.print_results(results)
        if json:
            outcome.write(results, json)
    if junit:
        write_text_atomically(junit, junit_report.render(results))
    if markdown:
        write_text_atomically(markdown, markdown_report.render(results))
    return exit_code(results)


def deliver_many(documents: Sequence[Results], page: Path) -> int:
    """Print the tables of every machine and write one page about all; returns the exit code over all rows."""
    from rwkv_export import tables
    from validation import exit_code, outcome

    merged = outcome.by_machine(documents)
    for results in merged:
        tables.print_machine(results.machine)
        tables.print_results(results)
    _write_page(merged, page)
    codes = {exit_code(results) for results in merged}
    return next((code for code in (CheckFailed.exit_code, Missing.exit_code) if code in codes), 0)


def write_page(files: Sequence[Path], out: Path, *, history: Sequence[Path] = ()) -> None:
    """Read results files and write the HTML page about all of them.

    history: results files of earlier runs, and folders of such
    """
    from validation import outcome

    earlier = [file for path in history for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    shown = {file.resolve() for file in files}
    past = [outcome.read(file) for file in earlier if file.resolve() not in shown]
    _write_page([outcome.read(file) for file in files], out, past)


def _write_page(documents: Sequence[Results], out: Path, history: Sequence[Results] = ()) -> None:
    from runtimes.files import write_text_atomically
    from validation.reports import html

    write_text_atomically(out, html.render(documents, history=history))
