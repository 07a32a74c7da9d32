"""An artifact's error in two parts: what its quantised graph costs, and what the device adds; it moves no bound."""

from __future__ import annotations

from dataclasses import replace

from exporter.progress import Progress, silent
from runtimes.contract import Session
from runtimes.errors import CheckFailed
from validation.metrics import read
from validation.outcome import Bound, Hops, Outcome, Parity
from validation.parity import check, follow
from validation.trace import Trace, record


def with_hops(
    row: Parity,
    session: Session,
    exact: Session,
    trace: Trace,
    *,
    place: str,
    bound: Bound,
    progress: Progress = silent,
) -> Parity:
    """The row of a session and its verdict, both hops added.

    exact: the same artifact in `place`, which does not round as the device does
    trace: of the checkpoint
    bound: what the session must keep against `exact`; equal to the last digit, it would not have run on the device
    """
    try:
        quality = read(follow(exact, trace))
        own = record(exact, trace.tokens, keep=trace.kept, progress=progress)
    except CheckFailed as failure:
        return replace(row, outcome=Outcome.FAIL, reasons=(*row.reasons, f"on {place}: {failure.message}"))
    found = check(session, own, bound, row.identity, graph_sizes=(), progress=progress)
    reasons = tuple(f"against {place}, {reason}" for reason in found.reasons if reason not in row.reasons)
    outcome = found.outcome if row.outcome is Outcome.PASS else row.outcome
    both = found.local and found.free and Hops(place, bound, found.local, found.free, quality)
    return replace(row, outcome=outcome, reasons=(*row.reasons, *reasons), hops=both or None)
