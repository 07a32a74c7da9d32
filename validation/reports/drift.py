"""How far a free-running error and a state grew, as cells of a table, for the terminal and Markdown."""

from __future__ import annotations

from validation.outcome import Drift, Parity
from validation.reports.words import sig

HEADER = ("tokens", "early |Δ|", "late |Δ|", "per 1000 tokens", "95 % interval", "growth", "state norm")


def cells(drift: Drift) -> tuple[str, ...]:
    """A cell for each column of HEADER; the norm is that of the tensor that grew most, and the checkpoint's."""
    errors = sig(drift.early), sig(drift.late), f"{drift.slope:+.2g}"
    norms = f"{sig(drift.norm_early)} → {sig(drift.norm)} ({sig(drift.reference_norm)})"
    return (str(drift.steps), *errors, f"{drift.low:+.2g} to {drift.high:+.2g}", drift.shape, norms)


def remarks(row: Parity) -> tuple[str, ...]:
    """What a row has to say that is neither number nor reason: what was not compared, whether the error grows."""
    return tuple(text for text in (row.compared, row.drift.says if row.drift else "") if text)
