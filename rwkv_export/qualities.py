"""Quality by precision as a table for people on stdout, below its checkpoint's line; it judges nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from rwkv_export.options import STDOUT
from rwkv_export.output import stdout

if TYPE_CHECKING:
    from validation.outcome import Quality, Results, Task

NUMBERS = ("weights", "perplexity", "mean KL nats", "top-1", "top-5")
CHECKPOINT = "checkpoint, fp32"


def deliver(results: Results, *, json: Path | None = None) -> None:
    """Print the table, rows by checkpoint, reasons and what was read, or the JSON; write the file that is named."""
    from rwkv_export import output
    from validation import outcome

    if json == STDOUT:
        output.print_json(results)
        return
    if json:
        outcome.write(results, json)
    _print(results)


def _print(results: Results) -> None:
    from validation.reports.words import listing, plural

    rows = results.quality
    tasks = list(dict.fromkeys(task.task for row in rows for task in row.tasks))
    words = [Column(name, no_wrap=True) for name in ("precision", "target", "ran on", "verdict")]
    columns = [*NUMBERS, *(header for task in tasks for header in _headers(task))]
    numbers = [Column(name, justify="right", no_wrap=True) for name in columns]
    table = Table(*words, *numbers, box=SIMPLE_HEAD, show_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for own in _by_checkpoint(rows):
        for cells in _lines(own, tasks):
            table.add_row(*cells)
    console = stdout()
    console.print(table)
    for row in rows:
        if row.reasons:
            console.print(
                f"{row.identity.artifact} on {row.identity.requested}: {listing(row.reasons)}", soft_wrap=True
            )
    read = dict.fromkeys(f"{plural(row.reading.tokens, 'token')} of {row.text}" for row in rows if row.reading)
    asked = dict.fromkeys(_asked(task) for row in rows for task in row.tasks)
    if read or asked:
        console.print(f"Read {listing([*read, *asked], most=8)}.", soft_wrap=True)


def _by_checkpoint(rows: Sequence[Quality]) -> Iterator[list[Quality]]:
    names = dict.fromkeys((row.identity.model, row.identity.version) for row in rows)
    for name in names:
        yield [row for row in rows if (row.identity.model, row.identity.version) == name]


def _lines(rows: Sequence[Quality], tasks: Sequence[str]) -> Iterator[list[str]]:
    from validation.reports.words import NOTHING, fine, share, sig, size

    read = next((row for row in rows if row.reading), None)
    if read and read.reading:
        answers = [cell for task in tasks for cell in _expected(_find(read, task))]
        own = [size(read.checkpoint_bytes), fine(read.reading.reference_perplexity), NOTHING, NOTHING, NOTHING]
        yield [CHECKPOINT, read.identity.model, "torch", "", *own, *answers]
    for row in rows:
        identity, reading, numbers = row.identity, row.reading, [""] * len(NUMBERS)
        if reading:
            agreement = [sig(reading.kl_mean), share(reading.top1), share(reading.top5)]
            numbers = [size(row.weight_bytes), fine(reading.perplexity), *agreement]
        answers = [cell for task in tasks for cell in _cells(_find(row, task))]
        where = identity.observed or f"nowhere, not {identity.requested}"
        yield [identity.precision, identity.target, where, row.outcome.value, *numbers, *answers]


def _find(row: Quality, name: str) -> Task | None:
    return next((task for task in row.tasks if task.task == name), None)


def _headers(task: str) -> tuple[str, ...]:
    shared = (f"{task} right", "as checkpoint")
    return (*shared, f"{task} ppl") if task == "lambada" else shared


def _cells(task: Task | None) -> list[str]:
    from validation.reports.words import fine, portion

    if task is None:
        return []
    error = f" ± {100 * task.error:.1f}" if task.error is not None else ""
    shared = [portion(task.accuracy) + error, portion(task.same)]
    return [*shared, fine(task.perplexity)] if task.perplexity is not None else shared


def _expected(task: Task | None) -> list[str]:
    from validation.reports.words import NOTHING, fine, portion

    if task is None:
        return []
    shared = [portion(task.reference_accuracy), NOTHING]
    return [*shared, fine(task.reference_perplexity)] if task.reference_perplexity is not None else shared


def _asked(task: Task) -> str:
    from validation.reports.words import plural

    return f"{plural(task.examples, 'example')} of {task.file}"
