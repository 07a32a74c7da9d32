"""What changed between two results documents: speed by a rank test on raw samples, accuracy by plain numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from validation.evidence import Evidence, evidence
from validation.outcome import Bound, Identity, Latency, Machine, Outcome, Parity, Quality, Reading, Results

Part = TypeVar("Part", Parity, Quality, Latency)

NOISE = 1.5
"""An error has changed when it grew or shrank by this factor: sums in another order move it by tens of percent."""

NEGLIGIBLE = 0.01
"""Changes below this share of the row's bound are rounding and are called the same."""

_WORSE = (
    Outcome.PASS,
    Outcome.FALLBACK,
    Outcome.SUSPICIOUS,
    Outcome.COMPILED,
    Outcome.MISSING,
    Outcome.FAIL,
    Outcome.ERROR,
)
"""From best to worst; a row that could not run proves less than one that ran somewhere else."""


class Verdict(StrEnum):
    """What became of one metric."""

    SLOWER = "slower"
    FASTER = "faster"
    SAME = "same"
    LESS_ACCURATE = "less accurate"
    MORE_ACCURATE = "more accurate"
    APPEARED = "appeared"
    VANISHED = "vanished"
    OUTCOME_CHANGED = "outcome changed"


@dataclass(frozen=True)
class Key:
    """What makes two rows of different documents the same: folders may move, so only the artifact's own name counts.

    occurrence: 0 for the first row with these names in its document, 1 for the second, ...
    """

    artifact: str
    model: str
    version: str
    target: str
    precision: str
    requested: str
    occurrence: int = 0

    def __str__(self) -> str:
        again = f" ({self.occurrence + 1})" if self.occurrence else ""
        return f"{self.artifact} on {self.requested}{again}"


@dataclass(frozen=True)
class Change:
    """One metric of one row, before and after.

    metric:   "parity", "quality", "latency" (outcomes, `old` and `new` are their words), "evidence" (words too, only
              where it changed), "decode", "prefill of 512 tokens" (median milliseconds), "max abs", "KL" (nats),
              "top-1" (fraction), "mean KL on text" (nats)
    old, new: None where the row or metric is absent
    ratio:    new / old; None where undefined
    p_value:  of the two-sided Mann-Whitney U test; None for accuracy
    """

    key: Key
    metric: str
    old: float | str | None
    new: float | str | None
    ratio: float | None
    p_value: float | None
    verdict: Verdict
    sentence: str


def compare(old: Results, new: Results, *, slower: float = 1.05, alpha: float = 0.01) -> tuple[Change, ...]:
    """Every outcome and metric of either document, in the old one's order, what appeared last.

    slower: ratio of medians that matters; alpha: significance level. A change of speed must pass both.
    """
    caution = _caution(old.machine, new.machine)
    changes: list[Change] = []
    for key, was, now in _pairs(old.parity, new.parity):
        changes += _outcomes(key, "parity", was, now)
        if was and now:
            changes += _evidence(key, was, now)
            changes += _accuracy(key, was, now)
    for key, past, present in _pairs(old.quality, new.quality):
        changes += _outcomes(key, "quality", past, present)
        if past and present:
            changes += _on_text(key, past, present)
    for key, before, after in _pairs(old.latency, new.latency):
        changes += _outcomes(key, "latency", before, after)
        if before and after and _on_a_device(before) and _on_a_device(after):
            changes += _speed(key, before, after, slower=slower, alpha=alpha, caution=caution)
    return tuple(changes)


def regressed(changes: Sequence[Change]) -> bool:
    """Whether anything got slower or less accurate, an outcome got worse, or a passing row vanished."""
    return any(
        change.verdict in (Verdict.SLOWER, Verdict.LESS_ACCURATE)
        or (change.verdict is Verdict.VANISHED and change.old == Outcome.PASS)
        or (change.verdict is Verdict.OUTCOME_CHANGED and _worse(change))
        for change in changes
    )


def artifact_changes(old: Results, new: Results) -> tuple[str, ...]:
    """Artifacts of one name, by that name, that are not the same files in both; earlier results cannot tell."""
    before, after = _digests(old), _digests(new)
    return tuple(name for name in before if name in after and not before[name] & after[name])


def _digests(results: Results) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    rows: tuple[Parity | Quality | Latency, ...] = (*results.parity, *results.quality, *results.latency)
    for identity in (row.identity for row in rows):
        if identity.digest:
            found.setdefault(Path(identity.artifact).name, set()).add(identity.digest)
    return found


def machine_changes(old: Machine, new: Machine) -> tuple[str, ...]:
    """Each recorded fact that differs, packages included, as "cpu: A, now B"."""
    found = [f"{fact}: {was}, now {now}" for fact, was, now in _facts(old, new) if was != now]
    for name in sorted({*old.packages, *new.packages}):
        was, now = old.packages.get(name, "absent"), new.packages.get(name, "absent")
        if was != now:
            found.append(f"{name}: {was}, now {now}")
    return tuple(found)


def _pairs(old: Sequence[Part], new: Sequence[Part]) -> Iterator[tuple[Key, Part | None, Part | None]]:
    before: dict[Key, Part] = _keyed(old)
    after: dict[Key, Part] = _keyed(new)
    for key in [*before, *(key for key in after if key not in before)]:
        yield key, before.get(key), after.get(key)


def _keyed(rows: Sequence[Part]) -> dict[Key, Part]:
    keyed: dict[Key, Part] = {}
    for row in rows:
        occurrence = 0
        while _key(row.identity, occurrence) in keyed:
            occurrence += 1
        keyed[_key(row.identity, occurrence)] = row
    return keyed


def _key(identity: Identity, occurrence: int) -> Key:
    return Key(
        Path(identity.artifact).name,
        identity.model,
        identity.version,
        identity.target,
        identity.precision,
        identity.requested,
        occurrence,
    )


def _outcomes(key: Key, metric: str, old: Part | None, new: Part | None) -> Iterator[Change]:
    was, now = (row.outcome.value if row else None for row in (old, new))
    if was == now:
        verdict, sentence = Verdict.SAME, f"{metric} is {now} as before"
    elif was is None:
        verdict, sentence = Verdict.APPEARED, f"{metric} is new: {now}"
    elif now is None:
        verdict, sentence = Verdict.VANISHED, f"{metric} was {was} and is not in the new results"
    else:
        verdict, sentence = Verdict.OUTCOME_CHANGED, f"{metric} was {was} and is {now}"
    why = f" ({new.reasons[0]})" if new and new.reasons and was != now else ""
    yield Change(key, metric, was, now, None, None, verdict, f"{key}: {sentence}{why}")


def _evidence(key: Key, old: Parity, new: Parity) -> Iterator[Change]:
    """Of rows that pass in both, proof of another kind: an emulator in place of the device, or the device at last."""
    was, now = evidence(old), evidence(new)
    if old.outcome is new.outcome is Outcome.PASS and was is not now:
        sentence = f"{key}: its pass was {was} and is {now}"
        yield Change(key, "evidence", was.value, now.value, None, None, Verdict.OUTCOME_CHANGED, sentence)


def _accuracy(key: Key, old: Parity, new: Parity) -> Iterator[Change]:
    if not old.free or not new.free:
        return
    bound = new.bound or old.bound
    steps = min(len(old.free.max_abs), len(new.free.max_abs))
    for metric, values, limit in _ERRORS:
        was, now = (_worst(values(reading)[:steps]) for reading in (old.free, new.free))
        verdict = _error_verdict(was, now, NEGLIGIBLE * limit(bound) if bound else 0.0)
        over = f" over the first {steps} steps" if len(old.free.max_abs) != len(new.free.max_abs) else ""
        sentence = f"{key}: largest {metric}{over} was {was:.3g} and is {now:.3g}: {verdict}"
        yield Change(key, metric, was, now, _ratio(was, now), None, verdict, sentence)
    if len(old.free.max_abs) == len(new.free.max_abs):
        was, now = old.free.top1, new.free.top1
        verdict = Verdict.LESS_ACCURATE if now < was else Verdict.MORE_ACCURATE if now > was else Verdict.SAME
        sentence = f"{key}: the greedy token agreed in {was:.1%} of {steps} steps, now in {now:.1%}: {verdict}"
        yield Change(key, "top-1", was, now, _ratio(was, now), None, verdict, sentence)


def _on_text(key: Key, old: Quality, new: Quality) -> Iterator[Change]:
    """Nothing where they read different texts, or not as far."""
    if not old.reading or not new.reading or (old.text, old.reading.tokens) != (new.text, new.reading.tokens):
        return
    bound, was, now = new.bound or old.bound, old.reading.kl_mean, new.reading.kl_mean
    verdict = _error_verdict(was, now, NEGLIGIBLE * bound.mean_kl if bound else 0.0)
    sentence = (
        f"{key}: mean KL over {old.reading.tokens} tokens of {old.text} was {was:.3g} and is {now:.3g}: {verdict}"
    )
    yield Change(key, "mean KL on text", was, now, _ratio(was, now), None, verdict, sentence)


_ERRORS: tuple[tuple[str, Callable[[Reading], Sequence[float]], Callable[[Bound], float]], ...] = (
    ("max abs", lambda reading: reading.max_abs, lambda bound: bound.max_abs),
    ("KL", lambda reading: reading.kl, lambda bound: bound.kl),
)


def _error_verdict(old: float, new: float, negligible: float) -> Verdict:
    """NaN is worse than any number."""
    if math.isnan(old) or math.isnan(new):
        same = math.isnan(old) == math.isnan(new)
        return Verdict.SAME if same else Verdict.LESS_ACCURATE if math.isnan(new) else Verdict.MORE_ACCURATE
    if old == new or abs(new - old) <= negligible:
        return Verdict.SAME
    if new > old * NOISE:
        return Verdict.LESS_ACCURATE
    return Verdict.MORE_ACCURATE if new * NOISE < old else Verdict.SAME


def _on_a_device(row: Latency) -> bool:
    """Whether the times are a device's: what an emulator or an interpreter takes is nobody's latency."""
    return row.identity.evidence not in ("emulated", "interpreted")


def _speed(key: Key, old: Latency, new: Latency, *, slower: float, alpha: float, caution: str) -> Iterator[Change]:
    before, after = _samples(old), _samples(new)
    for metric in [*before, *(metric for metric in after if metric not in before)]:
        was, now = before.get(metric), after.get(metric)
        if was and now:
            yield _timed(key, metric, was, now, slower=slower, alpha=alpha, caution=caution)
        elif was:
            sentence = f"{key}: {metric} is not in the new results"
            yield Change(key, metric, _median(was), None, None, None, Verdict.VANISHED, sentence)
        elif now:
            yield Change(key, metric, None, _median(now), None, None, Verdict.APPEARED, f"{key}: {metric} is new")


def _timed(
    key: Key, metric: str, old: Sequence[float], new: Sequence[float], *, slower: float, alpha: float, caution: str
) -> Change:
    from scipy.stats import mannwhitneyu

    was, now = _median(old), _median(new)
    ratio = _ratio(was, now)
    p_value = float(mannwhitneyu(old, new, alternative="two-sided").pvalue)
    verdict = Verdict.SAME
    if ratio is not None and p_value < alpha and not 1 / slower < ratio < slower:
        verdict = Verdict.SLOWER if ratio > 1 else Verdict.FASTER
    change = "" if ratio is None else f", {ratio:.2f} times the time"
    sentence = (
        f"{key}: {metric} took {was:.3g} ms and takes {now:.3g} ms{change} "
        f"(p = {p_value:.2g}, {len(old)} and {len(new)} samples): {verdict}{caution}"
    )
    return Change(key, metric, was, now, ratio, p_value, verdict, sentence)


def _samples(row: Latency) -> Mapping[str, tuple[float, ...]]:
    """Finite samples in seconds by metric; prompts of different length are different metrics."""
    parts = {"decode": row.decode}
    if row.prefill:
        parts[f"prefill of {row.prefill.tokens} tokens"] = row.prefill
    found = {name: tuple(filter(math.isfinite, part.seconds)) for name, part in parts.items() if part}
    return {name: seconds for name, seconds in found.items() if seconds}


def _median(seconds: Sequence[float]) -> float:
    """In milliseconds."""
    return statistics.median(seconds) * 1000


def _worst(values: Sequence[float]) -> float:
    return math.nan if not values or any(map(math.isnan, values)) else max(values)


def _ratio(old: float, new: float) -> float | None:
    return new / old if old > 0 and math.isfinite(new / old) else None


def _worse(change: Change) -> bool:
    order = [each.value for each in (Evidence if change.metric == "evidence" else _WORSE)]
    return order.index(str(change.new)) > order.index(str(change.old))


def _facts(old: Machine, new: Machine) -> Iterator[tuple[str, object, object]]:
    for fact in ("system", "cpu", "cores", "memory_bytes", "governor", "python"):
        yield fact, getattr(old, fact) or "unknown", getattr(new, fact) or "unknown"


def _caution(old: Machine, new: Machine) -> str:
    differing = [f"{fact} {was}, now {now}" for fact, was, now in _facts(old, new) if was != now and fact != "python"]
    return f"; but the machines differ ({'; '.join(differing)})" if differing else ""
