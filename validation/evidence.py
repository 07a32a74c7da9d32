"""What a row is evidence of, one word that follows from what it recorded; it measures nothing and moves no bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from typing import TypeVar

from validation.outcome import Bound, Latency, Outcome, Parity, Quality, Reading
from validation.trace import FEWEST

T = TypeVar("T", Parity, Quality, Latency)

ROUNDING = 1 + 1e-9
"""A state's relative error was divided once more than what was judged."""


class Evidence(StrEnum):
    """What shows that an artifact matches its checkpoint, the strongest first.

    HARDWARE    the target's own runtime, on the kind of device that `observed` names
    EMULATED    an emulator or a reference model of the vendor's, a GPU or a processor made of software
    INTERPRETED our interpreter of the saved file
    COMPILED    only that a delegate's own compiler took it
    UNPROVEN    nothing: it failed, ran elsewhere than asked or not at all, or its record contradicts itself
    """

    HARDWARE = "on hardware"
    EMULATED = "emulated"
    INTERPRETED = "interpreted"
    COMPILED = "compiled only"
    UNPROVEN = "unproven"


_PASSED = {"run": Evidence.HARDWARE, "emulated": Evidence.EMULATED, "interpreted": Evidence.INTERPRETED}
"""By how the place that passed says that it computed; where a record does not say, it proves nothing."""


def evidence(row: Parity | None) -> Evidence:
    """What a comparison with the checkpoint is evidence of; no other row is any."""
    if row is None:
        return Evidence.UNPROVEN
    if row.outcome is Outcome.COMPILED:
        return Evidence.COMPILED
    passed = row.outcome is Outcome.PASS and not any(doubts(row))
    return _PASSED.get(row.identity.evidence, Evidence.UNPROVEN) if passed else Evidence.UNPROVEN


def believed(row: T) -> T:
    """The row; suspicious where it says `pass` and what it recorded says otherwise, as in a file that was edited."""
    found: tuple[str, ...] = tuple(f"recorded as a pass, but {doubt}" for doubt in doubts(row))
    return replace(row, outcome=Outcome.SUSPICIOUS, reasons=(*row.reasons, *found)) if found else row


def doubts(row: Parity | Quality | Latency) -> Iterator[str]:
    """What of a row that says `pass` cannot be, as parts of sentences; nothing for other rows."""
    if row.outcome is not Outcome.PASS:
        return
    identity = row.identity
    if identity.observed != identity.requested:
        yield f"it was asked for {identity.requested} and ran on {identity.observed or 'nothing'}"
    if isinstance(row, Parity):
        yield from _of_parity(row)
    elif isinstance(row, Quality):
        if not row.reading:
            yield "no text was read"
        elif not row.bound or not row.reading.kl_mean <= row.bound.mean_kl:
            yield f"its mean KL of {row.reading.kl_mean:.3g} nats is in no bound"


def _of_parity(row: Parity) -> Iterator[str]:
    bound, local, free = row.bound, row.local, row.free
    if not bound or not local or not free:
        yield "it has no readings, or no bound for them"
        return
    if row.steps < FEWEST or len(free.max_abs) != row.steps:
        yield f"{len(free.max_abs)} of {row.steps} steps were compared, where {FEWEST} are the fewest"
    for label, reading in (("local", local), ("free", free)):
        if not _within(reading, bound):
            yield f"its {label} errors are not within {bound.name}"
    if bound.rounds and not any((*local.max_abs, *free.max_abs)):
        yield f"every logit equals the reference's exactly, which {bound.name} arithmetic cannot do"
    if not row.prefill or not all(error >= 0 for error in row.prefill.values()):
        yield "no prompt was compared with stepping"


def _within(reading: Reading, bound: Bound) -> bool:
    """As far as a reading tells; NaN is within nothing."""
    steps = all(error <= bound.max_abs for error in reading.max_abs) and all(each <= bound.kl for each in reading.kl)
    return steps and all(error <= bound.state_rel * ROUNDING for error in reading.state_rel.values())
