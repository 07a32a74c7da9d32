"""How the speed of each row went from run to run: which earlier results speak of it, the picture, the words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from validation.outcome import Results, Samples
from validation.reports.charts import colour, dash
from validation.reports.figure import draw, span_axis, tag_ends
from validation.reports.rows import Row, join, key
from validation.reports.words import change, plural, sig

LABELS = 5
"""Most dates below the picture."""
LATEST = "this run"
"""Of results that do not say when they were made; sorts after every date."""


@dataclass(frozen=True)
class Run:
    """The decode samples of one run; moment: what orders runs, ISO date and time in UTC first where that is known."""

    moment: tuple[str, int]
    decode: Samples

    @property
    def day(self) -> str:
        """Its date as a label."""
        return self.moment[0][:10] or "undated"


@dataclass(frozen=True)
class History:
    """The runs of one row, the oldest first and the row's own last."""

    row: Row
    runs: tuple[Run, ...]


def trace(rows: Sequence[Row], results: Sequence[Results], earlier: Sequence[Results]) -> list[History]:
    """The history of every row that has one: the same artifact's name in the same place of the same machine.

    A machine is the same where its name, system and processor are: packages are what one wants to see change.
    Documents that do not say when they were made come first, in the order given.
    """
    past = sorted(((_moment(document, index), join([document])) for index, document in enumerate(earlier)), key=_first)
    found = []
    for row in rows:
        if row.decode:
            runs = [Run(moment, old.decode) for moment, olds in past for old in olds if old.decode and _same(old, row)]
            if runs:
                made = next((document.made for document in results if document.machine == row.machine), "")
                found.append(History(row, (*runs, Run((made or LATEST, 0), row.decode))))
    return found


def _moment(document: Results, index: int) -> tuple[str, int]:
    """Runs without a date are told apart by their place in the list."""
    return (document.made, 0 if document.made else index)


def _first(dated: tuple[tuple[str, int], object]) -> tuple[str, int]:
    return dated[0]


def _same(old: Row, row: Row) -> bool:
    one, two = old.machine, row.machine
    return key(old) == key(row) and (one.name, one.system, one.cpu) == (two.name, two.system, two.cpu)


def picture(histories: Sequence[History]) -> str | None:
    """Median decode time by run, with a line up to the 90th percentile; None without a history."""
    if not histories:
        return None
    runs = sorted({run.moment: run for history in histories for run in history.runs}.items())
    places = {moment: place for place, (moment, _) in enumerate(runs)}

    def paint(axes: Any) -> None:
        for history in histories:
            x = [places[run.moment] for run in history.runs]
            medians = [run.decode.median_ms for run in history.runs]
            axes.plot(x, medians, color=colour(history.row), lw=2, ls=dash(history.row), marker="o", ms=5)
            axes.vlines(x, medians, [run.decode.p90_ms for run in history.runs], color=colour(history.row), lw=1)
        every = [run.decode for history in histories for run in history.runs]
        span_axis(axes.yaxis, [value for samples in every for value in (samples.median_ms, samples.p90_ms)])
        axes.set_xlim(-0.5, len(runs) - 0.5)
        shown = range(0, len(runs), -(-len(runs) // LABELS))
        axes.set_xticks(list(shown), [runs[place][1].day for place in shown])
        axes.grid(axis="x", visible=False)
        tag_ends(axes, [(str(each.row.number), each.runs[-1].decode.median_ms, colour(each.row)) for each in histories])

    told = "; ".join(f"row {history.row.number} {words(history)}" for history in histories)
    return draw("history", f"Line chart of the median decode time of each run: {told}.", paint)


def words(history: History) -> str:
    """The newest run against the one before it and against the fastest."""
    medians = [run.decode.median_ms for run in history.runs]
    now, before, best = medians[-1], medians[-2], min(medians[:-1])
    against = f"{change(now, before)} against the run before, {change(now, best)} against the fastest before"
    return f"{plural(len(medians), 'run')}, now {sig(now)} ms: {against}"
