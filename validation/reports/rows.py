"""Joins the parity and the latency of one artifact in one place into a row, and says in words what all rows prove."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from validation.outcome import Bound, Identity, Latency, Machine, Outcome, Parity, Reading, Results
from validation.reports.words import listing, plural, worst

TIMED = "timed"
"""Badge of a row that was measured but never compared with its checkpoint: not a pass."""


@dataclass(frozen=True)
class Row:
    """One artifact in one place on one machine; at least one of `parity` and `latency` is there.

    number: position on the page from 1, which names the row in every chart
    """

    number: int
    machine: Machine
    parity: Parity | None = None
    latency: Latency | None = None

    @property
    def identity(self) -> Identity:
        """Of the parity row if there is one."""
        part = self.parity or self.latency
        assert part is not None  # noqa: S101  join() makes no empty rows
        return part.identity

    @property
    def label(self) -> str:
        """Artifact and place, short."""
        return f"{self.identity.artifact} on {self.identity.requested}"

    @property
    def badges(self) -> tuple[tuple[str, str], ...]:
        """(kind, words) to show: parity first, then timing where it went otherwise. Never `pass` without parity."""
        timing = self.latency.outcome.value if self.latency else None
        if self.parity is None:
            return ((TIMED, "timed only"),) if timing == Outcome.PASS else ((str(timing), str(timing)),)
        outcome = self.parity.outcome.value
        first = (outcome, outcome)
        return (first,) if timing in (None, Outcome.PASS, outcome) else (first, (str(timing), f"timing: {timing}"))

    @property
    def interpreted(self) -> bool:
        """Whether an interpreter of ours ran it: its times say nothing of the target's speed."""
        parts = (part for part in (self.parity, self.latency) if part)
        return any(part.identity.evidence == "interpreted" for part in parts)

    @property
    def observed(self) -> str:
        """Where it ran, "" where nothing ran; both places if parity and timing ran in different ones."""
        parts = (part.identity.observed for part in (self.parity, self.latency) if part)
        return ", ".join(dict.fromkeys(place for place in parts if place))

    @property
    def reasons(self) -> tuple[str, ...]:
        """What went wrong, as sentences, each once; a non-pass without a recorded reason says so."""
        found: list[str] = []
        for part, what in ((self.parity, "parity"), (self.latency, "timing")):
            if part is not None:
                found += part.reasons
                if part.outcome is not Outcome.PASS and not part.reasons:
                    found.append(f"{what} is {part.outcome.value}, with no reason recorded")
        return tuple(dict.fromkeys(found))

    @property
    def free(self) -> Reading | None:
        """The free-running reading."""
        return self.parity.free if self.parity else None

    @property
    def bound(self) -> Bound | None:
        """What the readings must keep."""
        return self.parity.bound if self.parity else None

    @property
    def error(self) -> float | None:
        """Largest absolute logit error of the free-running reading."""
        return worst(self.free.max_abs) if self.free else None

    @property
    def tokens_per_second(self) -> float | None:
        """Decode speed from the median sample."""
        decode = self.latency.decode if self.latency else None
        return decode.tokens_per_second if decode else None


def join(documents: Sequence[Results]) -> tuple[Row, ...]:
    """All rows of some documents: parity and latency meet in order where identity and machine agree.

    Within one document first, then with what earlier documents left open.
    """
    rows: list[Row] = []
    for document in documents:
        own = len(rows)
        for parity in document.parity:
            _place(rows, own, Row(0, document.machine, parity=parity))
        for latency in document.latency:
            _place(rows, own, Row(0, document.machine, latency=latency))
    machines = [row.machine for row in rows]
    rows.sort(key=lambda row: machines.index(row.machine))
    return tuple(replace(row, number=number) for number, row in enumerate(rows, start=1))


def _place(rows: list[Row], own: int, new: Row) -> None:
    for index in [*range(own, len(rows)), *range(own)]:
        old = rows[index]
        free = old.latency is None if new.latency else old.parity is None
        if free and _key(old) == _key(new) and old.machine == new.machine:
            rows[index] = replace(old, parity=old.parity or new.parity, latency=old.latency or new.latency)
            return
    rows.append(new)


def _key(row: Row) -> tuple[str, ...]:
    identity = row.identity
    return (
        identity.artifact,
        identity.model,
        identity.version,
        identity.target,
        identity.precision,
        identity.requested,
    )


def counts(rows: Sequence[Row]) -> tuple[tuple[str, int], ...]:
    """How many rows each badge has, in the order of Outcome, without zeros."""
    found = Counter(row.badges[0][0] for row in rows)
    return tuple((kind, found[kind]) for kind in [*Outcome, TIMED] if found[kind])


@dataclass(frozen=True)
class Clause:
    """What keeps some rows from being proof: their outcome and a sentence without a full stop."""

    kind: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """What the rows prove: one headline, then a clause for each thing that is not so."""

    headline: str
    clauses: tuple[Clause, ...]

    def __str__(self) -> str:
        return "; ".join((self.headline, *(clause.text for clause in self.clauses))) + "."


_TROUBLE = {
    Outcome.FAIL: "outside tolerance",
    Outcome.FALLBACK: "ran elsewhere than asked",
    Outcome.SUSPICIOUS: "suspiciously exact",
    Outcome.ERROR: "stopped with an error",
    Outcome.MISSING: "could not run here",
}


def verdict(rows: Sequence[Row]) -> Verdict:
    """The verdict on some rows, in plain words."""
    compared = [row for row in rows if row.parity]
    if not rows:
        return Verdict("Nothing was compared and nothing was timed", ())
    if not compared:
        headline = f"Nothing was compared with a checkpoint; {_timed(rows)}"
        return Verdict(headline, tuple(_clauses(rows, timing=True)))
    clauses = [*_clauses(compared, timing=False), *_clauses(rows, timing=True)]
    extra = sum(row.badges[0][0] == TIMED for row in rows)
    if extra:
        clauses.append(Clause(TIMED, f"{extra} only timed, not compared"))
    return Verdict(_headline(compared), tuple(clauses))


def _headline(rows: Sequence[Row]) -> str:
    passed = sum(row.parity is not None and row.parity.outcome is Outcome.PASS for row in rows)
    artifacts = _artifacts(rows)
    if len(rows) == 1:
        return "The artifact matches its checkpoint" if passed else "The artifact is not shown to match its checkpoint"
    who = plural(len(rows), "artifact") if artifacts == len(rows) else f"{len(rows)} checks"
    whose = "" if artifacts == len(rows) else f" of {plural(artifacts, 'artifact')}"
    if passed == len(rows):
        return f"All {who}{whose} match the checkpoint"
    return f"{passed or 'None'} of {who}{whose} {'matches' if passed == 1 else 'match'} the checkpoint"


def _timed(rows: Sequence[Row]) -> str:
    done = sum(row.latency is not None and row.latency.decode is not None for row in rows)
    return f"{plural(done, 'run')} {'was' if done == 1 else 'were'} timed" if done else "nothing was timed"


def _artifacts(rows: Sequence[Row]) -> int:
    return len({(row.identity.artifact, row.machine.system, row.machine.cpu) for row in rows})


def _clauses(rows: Sequence[Row], *, timing: bool) -> list[Clause]:
    alone = _artifacts(rows) == len(rows)
    found = []
    for outcome, words in _TROUBLE.items():
        hit = [row for row in rows if _went(row, timing=timing) is outcome]
        if hit:
            names = listing(row.identity.artifact if alone else row.label for row in hit)
            part = hit[0].latency if timing else hit[0].parity
            why = f" ({part.reasons[0].rstrip('.')})" if len(hit) == 1 and part and part.reasons else ""
            text = f"{'timing of ' if timing else ''}{len(hit)} {words}: {names}{why}"
            found.append(Clause(outcome.value, text))
    return found


def _went(row: Row, *, timing: bool) -> Outcome | None:
    """The outcome a clause may speak of; timing counts only where it went otherwise than parity."""
    parity = row.parity.outcome if row.parity else None
    if not timing:
        return parity
    return row.latency.outcome if row.latency and row.latency.outcome is not parity else None
