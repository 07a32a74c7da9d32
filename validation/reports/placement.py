"""What computed each row, as one bar a row: shares of the arithmetic where they are known, else of the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from validation.reports.charts import colour
from validation.reports.figure import GRID, INK, MUTED, draw
from validation.reports.rows import Row
from validation.reports.words import listing, one_line, share

LIGHT = (INK, MUTED, GRID)
"""What computed the smaller shares, in order; the largest has the row's colour."""


def shares(row: Row) -> list[tuple[str, float]]:
    """(what computed, its share) of a row that ran, the largest first.

    Delegates say what they multiply; elsewhere a node counts as much as any other.
    """
    coverage = row.identity.coverage
    if not row.observed or (coverage is None and row.identity.target.startswith("executorch")):
        return []  # a call of a delegate is not a node as others are
    if coverage and coverage.delegates and (total := coverage.macs_inside + coverage.macs_outside):
        parts = {", ".join(coverage.delegates): coverage.macs_inside, "the runtime": coverage.macs_outside}
    else:
        parts, total = dict(row.identity.nodes), sum(row.identity.nodes.values())
    return sorted(((name, count / total) for name, count in parts.items() if count), key=lambda part: -part[1])


def words(row: Row) -> str:
    """Where it was asked to run, where it did, and what computed how much there."""
    coverage = row.identity.coverage
    of = "of the multiply-accumulates" if coverage and coverage.delegates else "of the nodes"
    asked = "as asked" if row.observed == row.identity.requested else f"asked for {row.identity.requested}"
    parts = listing((f"{name} {share(part)}" for name, part in shares(row)), most=4)
    return f"{row.observed}, {asked}: {parts} {of}"


def picture(rows: Sequence[Row]) -> str | None:
    """A stacked bar for each row that says what computed it; None without one."""
    shown = [(row, parts) for row in rows if (parts := shares(row))]
    if not shown:
        return None

    def paint(axes: Any) -> None:
        for y, (row, parts) in enumerate(shown):
            left = 0.0
            for place, (_, part) in enumerate(parts):
                face = colour(row) if place == 0 else LIGHT[min(place, len(LIGHT)) - 1]
                axes.plot([left, left + part], [y, y], color=face, lw=9, solid_capstyle="butt")
                left += part
            name, part = parts[0]
            text = one_line(f"{row.number} · {row.observed} · {name} {share(part)}")
            axes.annotate(text, (0, y), (0, 8), textcoords="offset points", color=INK, fontsize=10)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.set_ylim(len(shown) - 0.5, -0.8)
        axes.set_yticks([])

    alt = "; ".join(f"row {row.number} {words(row)}" for row, _ in shown[:12])
    return draw("placement", f"Bars of what computed each row: {alt}.", paint, height=34 * len(shown) + 80, left=14)
