"""Joins parity, quality and latency of one artifact in one place into a row, and says in words what all rows prove."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from runtimes.profile import Profile
from validation.evidence import Evidence, believed, evidence
from validation.outcome import Bound, Identity, Latency, Machine, Outcome, Parity, Quality, Reading, Results, Samples
from validation.reports.words import listing, plural, share, times, worst

UNITS = 3
"""Delegates, execution providers or operators that a row names."""
COMPILED_ONLY = "compiled only"
UNPROVEN = (Outcome.MISSING, Outcome.COMPILED)
"""Nothing ran: no proof, and nothing against the other parts of the row."""
TIMED = "timed"
"""Badge of a row that was measured but never compared with its checkpoint: not a pass."""


Part = Parity | Quality | Latency


@dataclass(frozen=True)
class Row:
    """One artifact in one place on one machine; at least one of `parity`, `latency` and `quality` is there.

    number: position on the page from 1, which names the row in every chart
    """

    number: int
    machine: Machine
    parity: Parity | None = None
    latency: Latency | None = None
    quality: Quality | None = None

    @property
    def parts(self) -> tuple[tuple[str, Part], ...]:
        """What there is, with its name, parity first."""
        named = (("parity", self.parity), ("quality", self.quality), ("timing", self.latency))
        return tuple((name, part) for name, part in named if part)

    @property
    def identity(self) -> Identity:
        """Of the parity row if there is one."""
        return self.parts[0][1].identity

    @property
    def outcome(self) -> Outcome | None:
        """Of the comparison with the checkpoint: the first of parity and quality that went wrong; None without either.

        A text that could not be read takes nothing from a parity that holds.
        """
        found = [part.outcome for part in (self.parity, self.quality) if part]
        wrong = [outcome for outcome in found if outcome is not Outcome.PASS and outcome not in UNPROVEN]
        return next(iter(wrong or found), None)

    @property
    def label(self) -> str:
        """Artifact and place, short."""
        return f"{self.identity.artifact} on {self.identity.requested}"

    @property
    def badges(self) -> tuple[tuple[str, str], ...]:
        """(kind, words) to show: `outcome` first, then what went otherwise. Never `pass` without a comparison."""
        if self.outcome is None:
            timing = self.parts[0][1].outcome
            return ((TIMED, "timed only"),) if timing is Outcome.PASS else ((timing.value, said(timing)),)
        whose = "" if self.parity and self.parity.outcome is self.outcome else "quality: "
        first = (self.outcome.value, f"{whose}{said(self.outcome)}")
        others = [(name, part.outcome) for name, part in self.parts if part.outcome not in (Outcome.PASS, self.outcome)]
        return (first, *((outcome.value, f"{name}: {said(outcome)}") for name, outcome in others))

    @property
    def evidence(self) -> Evidence:
        """What the row is evidence of: nothing where any of its comparisons went wrong."""
        held = self.outcome in (Outcome.PASS, Outcome.COMPILED)
        return evidence(self.parity) if held else Evidence.UNPROVEN

    @property
    def stand_in(self) -> str:
        """ "emulated" or "interpreted" where no device of the target ran it: its times are no latency; else ""."""
        kinds = (part.identity.evidence for _, part in self.parts)
        return next((kind for kind in kinds if kind not in ("", "run")), "")

    @property
    def units(self) -> tuple[str, ...]:
        """What computed it, the delegates first, and how many other kinds of operator there are."""
        delegates = self.identity.coverage.delegates if self.identity.coverage else {}
        ordered = sorted(self.identity.nodes.items(), key=lambda item: (item[0] not in delegates, -item[1]))
        more = len(ordered) - UNITS
        return (*(times(count, unit) for unit, count in ordered[:UNITS]), *([f"{more} more"] if more > 0 else []))

    @property
    def profile(self) -> Profile | None:
        """Where a token's time goes, if that was measured."""
        return self.latency.profile if self.latency else None

    @property
    def observed(self) -> str:
        """Where it ran, "" where nothing ran; every place if its parts ran in different ones."""
        places = (part.identity.observed for _, part in self.parts)
        return ", ".join(dict.fromkeys(place for place in places if place))

    @property
    def where(self) -> str:
        """`observed`, with what the evidence of the row leaves unsaid; "nowhere"."""
        several = self.observed != self.identity.observed
        aside = f", {self.stand_in}" if self.stand_in and self.evidence != self.stand_in else ""
        return (self.observed if several else place(self.identity)) + aside

    @property
    def reasons(self) -> tuple[str, ...]:
        """What went wrong, as sentences, each once; a non-pass without a recorded reason says so."""
        found: list[str] = []
        for name, part in self.parts:
            found += part.reasons
            if part.outcome is not Outcome.PASS and not part.reasons:
                found.append(f"{name} is {part.outcome.value}, with no reason recorded")
        return tuple(dict.fromkeys(found))

    @property
    def free(self) -> Reading | None:
        """The free-running reading."""
        return self.parity.free if self.parity else None

    @property
    def bound(self) -> Bound | None:
        """What the readings must keep."""
        return next((part.bound for part in (self.parity, self.quality) if part and part.bound), None)

    @property
    def error(self) -> float | None:
        """Largest absolute logit error of the free-running reading."""
        return worst(self.free.max_abs) if self.free else None

    @property
    def tokens_per_second(self) -> float | None:
        """Decode speed from the median sample."""
        return self.decode.tokens_per_second if self.decode else None

    @property
    def decode(self) -> Samples | None:
        """The target's own decode samples."""
        return self.latency.decode if self.latency and not self.stand_in else None


def said(outcome: Outcome) -> str:
    """An outcome as badges say it."""
    return COMPILED_ONLY if outcome is Outcome.COMPILED else outcome.value


def join(documents: Sequence[Results]) -> tuple[Row, ...]:
    """All rows of some documents: parity, quality and latency meet in order where identity and machine agree.

    Those of an artifact and of another one of its name stay apart, and what contradicts itself is no pass. Within one
    document first, then with what earlier documents left open.
    """
    rows: list[Row] = []
    for document in documents:
        own = len(rows)
        for parity in document.parity:
            _place(rows, own, Row(0, document.machine, parity=believed(parity)))
        for quality in document.quality:
            _place(rows, own, Row(0, document.machine, quality=believed(quality)))
        for latency in document.latency:
            _place(rows, own, Row(0, document.machine, latency=believed(latency)))
    machines = [row.machine for row in rows]
    rows.sort(key=lambda row: machines.index(row.machine))
    return tuple(replace(row, number=number) for number, row in enumerate(rows, start=1))


def _place(rows: list[Row], own: int, new: Row) -> None:
    for index in [*range(own, len(rows)), *range(own)]:
        old = rows[index]
        free = not {name for name, _ in old.parts} & {name for name, _ in new.parts}
        same = key(old) == key(new) and old.identity.digest == new.identity.digest
        if free and same and old.machine == new.machine:
            rows[index] = Row(
                0, old.machine, old.parity or new.parity, old.latency or new.latency, old.quality or new.quality
            )
            return
    rows.append(new)


def key(row: Row) -> tuple[str, ...]:
    """What two rows of one machine must share to speak of the same."""
    identity = row.identity
    return (
        identity.artifact,
        identity.model,
        identity.version,
        identity.target,
        identity.precision,
        identity.requested,
    )


def place(identity: Identity) -> str:
    """Where it ran, with the share of operations that did where the runtime tells of others; "nowhere"."""
    device = identity.observed.rpartition(":")[2]
    there = sum(count for unit, count in identity.nodes.items() if unit.lower().split()[:1] == [device])
    part = there / sum(identity.nodes.values()) if there else 1
    return (identity.observed or "nowhere") + (f", {share(part)} of it" if part < 1 else "")


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


_NOT_SHOWN = "The artifact is not shown to match its checkpoint"

_WHOSE = {"parity": "", "quality": "quality of ", "timing": "timing of "}
"""How a clause on a part begins."""

_TROUBLE = {
    Outcome.FAIL: "outside tolerance",
    Outcome.FALLBACK: "ran elsewhere than asked",
    Outcome.SUSPICIOUS: "suspiciously exact",
    Outcome.ERROR: "stopped with an error",
    Outcome.COMPILED: "compiled only, which nothing here can run",
    Outcome.MISSING: "could not run here",
}


def verdict(rows: Sequence[Row]) -> Verdict:
    """The verdict on some rows, in plain words."""
    compared = [row for row in rows if row.parity]
    if not rows:
        return Verdict("Nothing was compared and nothing was timed", ())
    if not compared:
        headline = f"Nothing was compared with a checkpoint{_other(rows)}"
        return Verdict(headline, (*_clauses(rows, "quality"), *_clauses(rows, "timing")))
    clauses = [*_clauses(compared, "parity"), *_clauses(rows, "quality"), *_clauses(rows, "timing")]
    extra = sum(row.badges[0][0] == TIMED for row in rows)
    if extra:
        clauses.append(Clause(TIMED, f"{extra} only timed, not compared"))
    return Verdict(_headline(compared), tuple(clauses))


def _headline(rows: Sequence[Row]) -> str:
    passed = sum(row.outcome is Outcome.PASS for row in rows)
    artifacts = _artifacts(rows)
    if len(rows) == 1:
        return f"The artifact matches its checkpoint{_how(rows)}" if passed else _NOT_SHOWN
    who = plural(len(rows), "artifact") if artifacts == len(rows) else f"{len(rows)} checks"
    whose = "" if artifacts == len(rows) else f" of {plural(artifacts, 'artifact')}"
    if passed == len(rows):
        return f"All {who}{whose} match the checkpoint{_how(rows)}"
    return f"{passed or 'None'} of {who}{whose} {'matches' if passed == 1 else 'match'} the checkpoint{_how(rows)}"


def _how(rows: Sequence[Row]) -> str:
    """What those that match are evidence of, where not all of them ran on hardware."""
    kinds = Counter(row.evidence for row in rows if row.outcome is Outcome.PASS)
    if set(kinds) <= {Evidence.HARDWARE}:
        return ""
    if len(rows) == 1:
        return f", {''.join(kinds)}"
    return ": " + ", ".join(f"{kinds[kind]} {kind}" for kind in Evidence if kinds[kind])


def _other(rows: Sequence[Row]) -> str:
    """What was done in place of comparing step by step."""
    read = sum(row.quality is not None and row.quality.reading is not None for row in rows)
    return f" step by step; {plural(read, 'artifact')} read a text beside it" if read else f"; {_timed(rows)}"


def _timed(rows: Sequence[Row]) -> str:
    done = sum(row.latency is not None and row.latency.decode is not None for row in rows)
    return f"{plural(done, 'run')} {'was' if done == 1 else 'were'} timed" if done else "nothing was timed"


def _artifacts(rows: Sequence[Row]) -> int:
    return len({(row.identity.artifact, row.machine.system, row.machine.cpu) for row in rows})


def _clauses(rows: Sequence[Row], name: str) -> list[Clause]:
    alone = _artifacts(rows) == len(rows)
    found = []
    for outcome, words in _TROUBLE.items():
        hit = [(row, part) for row in rows for part in _told(row, name) if part.outcome is outcome]
        if hit:
            names = listing(row.identity.artifact if alone else row.label for row, _ in hit)
            reasons = hit[0][1].reasons
            why = f" ({reasons[0].rstrip('.')})" if len(hit) == 1 and reasons else ""
            found.append(Clause(outcome.value, f"{_WHOSE[name]}{len(hit)} {words}: {names}{why}"))
    return found


def _told(row: Row, name: str) -> list[Part]:
    """The part that a clause may speak of; quality and timing count only where they went otherwise than parity."""
    parity = row.parity.outcome if row.parity else None
    return [part for own, part in row.parts if own == name and (name == "parity" or part.outcome is not parity)]
