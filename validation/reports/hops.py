"""The two halves of a quantised artifact's error as cells of a table, for the terminal, Markdown and the page."""

from __future__ import annotations

from collections.abc import Sequence

from validation.outcome import Hops
from validation.reports.rows import Row
from validation.reports.words import share, sig, worst

HEADER = ("kernel Δlogit, local", "free", "kernel top-1", "quality Δlogit", "quality KL", "quality top-1")


def cells(hops: Hops) -> tuple[str, ...]:
    """A cell for each column of HEADER: largest errors of a logit, the worst KL, shares of equal greedy tokens."""
    kernel = sig(hops.kernel_local.worst), sig(hops.kernel.worst), share(hops.kernel.top1)
    return (*kernel, sig(hops.quality.worst), sig(worst(hops.quality.kl)), share(hops.quality.top1))


def split(rows: Sequence[Row]) -> list[tuple[Row, Hops, tuple[str, ...]]]:
    """The rows whose error is known in two parts, with their cells."""
    found = ((row, row.parity.hops) for row in rows if row.parity)
    return [(row, hops, cells(hops)) for row, hops in found if hops]
