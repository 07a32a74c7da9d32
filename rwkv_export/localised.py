"""Where parity was lost, as two tables and a sentence for people on stdout; it looks for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from rwkv_export.output import plain_table, stdout

if TYPE_CHECKING:
    from validation.localise.findings import Found, Layer, Place
    from validation.outcome import Results


def print_found(found: Found) -> None:
    """Layers, then the operations that matter, then one sentence; what to do about it last."""
    console = stdout()
    console.print(_layers(found.layers), _operations(found), sep="\n")
    console.print(_scope(found), soft_wrap=True, style="dim")
    console.print(Text(found.sentence, style="red" if found.lost else "green"), soft_wrap=True)
    for reason in found.reasons[:1]:
        console.print(reason, soft_wrap=True)
    if found.first:
        console.print(_before(found.first), soft_wrap=True)
    cause = found.first.cause if found.first else found.cause
    if cause:
        console.print(f"{cause.name}: {cause.why}. {cause.fix[:1].upper()}{cause.fix[1:]}.", soft_wrap=True)


def point(results: Results, artifacts: Sequence[Path]) -> None:
    """A line for the first row that is not its checkpoint: which command finds where."""
    from runtimes import manifest

    for row in results.parity:
        if row.outcome == "fail" and any(reason.startswith(("local", "free")) for reason in row.reasons):
            found = (folder for path in artifacts for folder in manifest.find(path))
            folder = next(each for each in found if each.resolve().name == row.identity.artifact)
            place = row.identity.requested
            stdout().print(f"`rwkv-export localise {folder} --on {place}` finds where", soft_wrap=True)
            return


def _layers(layers: Sequence[Layer]) -> Table:
    table = plain_table(
        Column("layer", no_wrap=True), Column("ends in", no_wrap=True), *_numbers("max |Δ|", "relative", "SQNR dB"),
        *_numbers("worst op / allowed"),
    )  # fmt: skip
    for layer in layers:
        wrong = layer.worst is None or layer.worst > 1
        worst = Text(_short(layer.worst), style="red" if wrong else "")
        row = (_short(layer.max_abs), _short(layer.relative), _decibels(layer.sqnr_db))
        table.add_row(layer.name, layer.tensor, *row, worst)
    return table


def _operations(found: Found) -> Table:
    table = plain_table(
        Column("operation", overflow="fold"), Column("of the step", overflow="fold"), Column("value", overflow="fold"),
        *_numbers("adds max |Δ|", "relative", "allowed", "SQNR dB"),
    )  # fmt: skip
    rows = [*([found.first] if found.first else []), *found.others] or list(found.most)
    for place in rows:
        wrong = place.relative is None or place.relative > place.level
        name = Text(place.op or "(not seen)", style="red" if wrong else "")
        numbers = (_short(place.max_abs), _short(place.relative), _short(place.level), _decibels(place.sqnr_db))
        table.add_row(name, f"{place.module}: {place.reference}", place.tensor, *numbers)
    return table


def _before(place: Place) -> str:
    """What was right just before."""
    known = [f"{each.name} to {_short(each.error)}" for each in place.before if each.error is not None]
    before = f"Just before, relative to the checkpoint: {', '.join(known)}." if known else ""
    between = f" Between these and the result lie {', '.join(place.between)}." if place.between else ""
    return before + between


def _scope(found: Found) -> str:
    """What was looked at."""
    from validation.reports.words import plural

    what = f"{found.seen} of the step's {found.operations} operations were recognised in the artifact"
    if not found.whole:
        what = f"only what it returns was seen, {found.seen} values: {found.place} shows none in between"
    return f"{found.artifact} on {found.place}, {plural(found.tokens, 'token')}: {what}"


def _numbers(*names: str) -> list[Column]:
    return [Column(name, justify="right", no_wrap=True) for name in names]


def _short(value: float | None) -> str:
    return "inf or NaN" if value is None else f"{value:.2g}"


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
