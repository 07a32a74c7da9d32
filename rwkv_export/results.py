"""Delivers results: tables to stdout, files where asked, and the exit code; it judges nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from validation.outcome import Results


def deliver(
    results: Results, *, json: Path | None = None, junit: Path | None = None, markdown: Path | None = None
) -> int:
    """Print the tables, write the files that are named; returns the process's exit code."""
    from runtimes.files import write_text_atomically
    from rwkv_export import tables
    from validation import exit_code, outcome
    from validation.reports import junit as junit_report
    from validation.reports import markdown as markdown_report

    tables.print_results(results)
    if json:
        outcome.write(results, json)
    if junit:
        write_text_atomically(junit, junit_report.render(results))
    if markdown:
        write_text_atomically(markdown, markdown_report.render(results))
    return exit_code(results)


def write_page(files: Sequence[Path], out: Path) -> None:
    """Read results files and write the HTML page about all of them."""
    from runtimes.files import write_text_atomically
    from validation import outcome
    from validation.reports import html

    write_text_atomically(out, html.render([outcome.read(file) for file in files]))
