"""The gate of continuous integration: artifacts held to bounds and to a baseline's speed, a sentence for each miss.

It measures with `validate` and `measure` and compares with `compare`; what is its own is the judgement.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from exporter.progress import Progress, silent
from runtimes.errors import WrongCall
from validation import machine, outcome, runner
from validation.comparison import Change, Verdict, compare
from validation.outcome import Latency, Machine, Outcome, Parity, Results
from validation.reports.words import sig
from validation.rows import Keep, forget

SLOWER = 1.10
"""Times the baseline's median that is allowed where `latency` names no other ratio."""
ALPHA = 0.01
_AGAIN = "; make a baseline here with `rwkv-export bench` and --json"
_WORD = re.compile(r"(parity)|latency(?::(\d+(?:\.\d+)?)x)?")


@dataclass(frozen=True)
class Limits:
    """What fails: parity, as `validate` has it, texts included; times above this ratio to a baseline."""

    parity: bool
    slower: float | None


def parse(fail_on: str) -> Limits:
    """Limits as "parity,latency:1.10x" names them; raises WrongCall for anything else."""
    found = [_WORD.fullmatch(word.strip()) for word in fail_on.split(",")]
    ratios = [float(word[2] or SLOWER) for word in found if word and not word[1]]
    if not all(found) or len(ratios) > 1 or any(ratio < 1 for ratio in ratios):
        raise WrongCall(f"cannot fail on {fail_on!r}", hint='name "parity", "latency:1.10x", or both with a comma')
    return Limits(any(word and word[1] for word in found), next(iter(ratios), None))


def gate(
    artifacts: Sequence[Path],
    *,
    on: Sequence[str] | None = None,
    fail_on: str | None = None,
    baseline: Path | None = None,
    checkpoint: Path | None = None,
    steps: int = 64,
    prompt: int = 64,
    tokens: int = 128,
    keep: Keep = forget,
    progress: Progress = silent,
) -> Results:
    """Validate artifacts, time them, and fail the rows that broke a limit, the reason of each in one sentence.

    fail_on:  "parity", "latency:1.10x" or both with a comma, and only those are run; where None, both with a
              baseline and parity without
    baseline: results of `bench` or of an earlier gate on this machine
    others:   as of `validate` and `measure`; `keep` is given rows before they are judged

    Times that look too slow are measured once more, and fail only if they are too slow again. Those that cannot be
    judged, because the baseline lacks them or is another machine's, are MISSING. Raises WrongCall where `fail_on` has
    latency and there is no baseline, and what `validate` and `measure` raise.
    """
    limits = parse(fail_on or ("parity,latency" if baseline else "parity"))
    if limits.slower and not baseline:
        raise WrongCall(
            "latency has no baseline to be compared with",
            hint="make one with `rwkv-export bench ARTIFACT... --json baseline.json`, then name it: --baseline FILE",
        )
    known = outcome.read(baseline) if baseline else None
    found = Results(outcome.SCHEMA, machine.describe(), made=machine.now())
    if limits.parity:
        found = runner.validate(artifacts, on=on, checkpoint=checkpoint, steps=steps, keep=keep, progress=progress)
        found = replace(found, parity=tuple(map(_told, found.parity)))
    if limits.slower and baseline and known:
        against = _Baseline(baseline.name, known, limits.slower)
        time = partial(runner.measure, artifacts, on=on, prompt=prompt, tokens=tokens, keep=keep, progress=progress)
        timed = time()
        again = time() if any(map(against.slower, timed.latency)) else timed
        rows = tuple(map(partial(against.judged, timed.machine), timed.latency, again.latency))
        found = replace(found, latency=rows)
    return found


@dataclass(frozen=True)
class _Baseline:
    """Earlier results, the name of their file, and how many times their medians are allowed."""

    name: str
    results: Results
    ratio: float

    def slower(self, row: Latency) -> list[Change]:
        """What of a row is too slow, by medians and by a rank test on the samples."""
        return [change for change in self._changes(row) if change.verdict is Verdict.SLOWER]

    def judged(self, here: Machine, row: Latency, again: Latency) -> Latency:
        """The second measurement's row, failed for what is too slow in both; missing where that cannot be told."""
        wrong = next((each for each in (row, again) if each.outcome is not Outcome.PASS), None)
        if wrong:
            return wrong
        if lacking := self._lacking(here, row):
            return replace(row, outcome=Outcome.MISSING, reasons=(f"timed, but not judged: {lacking}",))
        slow = {change.metric for change in self.slower(row)}
        both = [change for change in self.slower(again) if change.metric in slow]
        return replace(again, outcome=Outcome.FAIL, reasons=(self._sentence(both),)) if both else again

    def _changes(self, row: Latency) -> list[Change]:
        alone = replace(self.results, parity=(), quality=(), latency=(row,))
        own = tuple(each for each in self.results.latency if _of_the_place(each))
        speeds = replace(self.results, parity=(), quality=(), latency=own)
        return [
            change
            for change in compare(speeds, alone, slower=self.ratio, alpha=ALPHA)
            if change.metric != "latency" and change.new is not None
        ]

    def _lacking(self, here: Machine, row: Latency) -> str:
        """Why the baseline does not say how fast this row should be, or ""."""
        was, now = ((made.cpu, made.cores) for made in (self.results.machine, here))
        if was != now:
            return f"{self.name} was made on {was[1]} cores of {was[0]}, this machine has {now[1]} of {now[0]}{_AGAIN}"
        if row.identity.evidence in runner.NOT_LATENCY:
            return runner.NOT_LATENCY[row.identity.evidence]
        if not any(change.metric == "decode" and change.old is not None for change in self._changes(row)):
            return f"{self.name} has no timing of {row.identity.artifact} on {row.identity.requested}{_AGAIN}"
        return ""

    def _sentence(self, slow: Sequence[Change]) -> str:
        made = f" of {self.results.made[:10]}" if self.results.made else ""
        parts = [
            f"{'a decoded token' if change.metric == 'decode' else f'a {change.metric}'} takes "
            f"{sig(float(change.new or 0))} ms, {sig(change.ratio)} times the {sig(float(change.old or 0))} ms"
            for change in slow
        ]
        p_value = max(change.p_value or 0.0 for change in slow)
        return (
            f"{' and '.join(parts)} in {self.name}{made}, where {self.ratio:.2f} times is allowed (slower in two "
            f"measurements, p = {p_value:.1g}): find what changed since, or accept it by making these results the new "
            "baseline"
        )


def _of_the_place(row: Latency) -> bool:
    """Whether the times are those of the place that was asked for, and of no stand-in."""
    return row.outcome is not Outcome.FALLBACK and row.identity.evidence not in runner.NOT_LATENCY


def _told(row: Parity) -> Parity:
    """A row that failed, with a first reason for somebody who reads only that."""
    if row.outcome is not Outcome.FAIL:
        return row
    what = row.reasons[0]
    if row.free and row.bound and not row.free.worst <= row.bound.max_abs:
        times = row.free.worst / row.bound.max_abs
        what = (
            f"its logits are up to {row.free.worst:.3g} off, {times:.3g} times the {row.bound.max_abs:.3g} that "
            f"{row.bound.name} allows"
        )
    sentence = (
        f"it does not compute what its checkpoint does: {what}, over {row.steps} tokens; export it again, and if that "
        f"fails too, `rwkv-export localise` finds the layer"
    )
    return replace(row, reasons=(sentence, *row.reasons))
