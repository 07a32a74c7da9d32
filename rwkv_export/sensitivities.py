"""Delivers sensitivities: a table to stdout, files where asked; it measures and recommends nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from rwkv_export.options import STDOUT
from rwkv_export.output import stdout

if TYPE_CHECKING:
    from validation.sensitivity_results import Effect, Sensitivity

SHOWN = 15
"""Single matrices of the table, the dearest."""


def saver(path: Path | None) -> Callable[[Sensitivity], None]:
    """Writes the document to `path`, where that is a file."""
    from validation import sensitivity_results

    return lambda document: sensitivity_results.write(document, path) if path not in (None, STDOUT) else None


def deliver(
    document: Sensitivity, *, json: Path | None = None, report: Path | None = None, keep: Path | None = None
) -> None:
    """Print what was found, as a table or as JSON, write the page and the list that are named."""
    from runtimes.files import write_text_atomically
    from rwkv_export import output
    from validation.reports import sensitivity as page

    if json == STDOUT:
        output.print_json(document)
    else:
        _print(document)
    if report:
        write_text_atomically(report, page.render(document))
    if keep:
        write_text_atomically(keep, "".join(f"{name}\n" for name in document.keep or ()))


def _print(document: Sensitivity) -> None:
    from validation.reports import sensitivity as page

    console, matrices = stdout(), document.matrices
    console.print(_table(document, [*_together(document), *matrices[:SHOWN]]))
    if len(matrices) > SHOWN:
        console.print(f"{len(matrices) - SHOWN} more cost less each; --json and --report have all.", soft_wrap=True)
    console.print(f"{page.headline(document)}. {page.advice(document)}", soft_wrap=True)
    if document.keep:
        console.print(f"-O keep={','.join(document.keep)}", soft_wrap=True)


def _together(document: Sensitivity) -> list[Effect]:
    """What was quantised together, the most first."""
    from validation.sensitivity_results import ALL, KEPT

    return [*(each for each in map(document.find, (ALL, KEPT)) if each), *document.layers]


def _table(document: Sensitivity, effects: list[Effect]) -> Table:
    from validation.reports.words import fine, portion, share, sig, size

    words = [Column("quantised", no_wrap=True), Column("stored as", overflow="fold")]
    numbers = ("bytes", "mean KL nats", "of all", "p99 KL", "perplexity", "top-1")
    table = Table(*words, *(Column(name, justify="right", no_wrap=True) for name in numbers), box=SIMPLE_HEAD)
    total = sum(each.kl_mean for each in document.matrices) or 1.0
    for each in effects:
        kl = (sig(each.kl_mean), portion(each.kl_mean / total), sig(each.kl_p99))
        table.add_row(each.name, each.kind, size(each.nbytes), *kl, fine(each.perplexity), share(each.top1))
    return table
