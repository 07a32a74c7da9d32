"""Comparing two results documents: real slowdowns are found, noise is not, and lost proof counts as a regression."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from validation import outcome
from validation.comparison import Change, Verdict, compare, machine_changes, regressed
from validation.outcome import (
    Bound,
    Identity,
    Latency,
    Machine,
    Outcome,
    Parity,
    Quality,
    Reading,
    Results,
    Samples,
    TextReading,
)

MACHINE = Machine("Linux 6.8", "Test CPU 9000", 8, 16_000_000_000, "performance", "3.11.9", {"torch": "2.13.0"})
BOUND = Bound("cpu-fp32", 1e-3, 1e-6, 1.0, 1e-4, "Float32 sums in another order.")
WHO = Identity("out/art", "tiny", "7", "onnx-cpu", "fp32", "ort:cpu", "ort:cpu")


def samples(milliseconds: float, seed: int, count: int = 128, tokens: int = 1) -> Samples:
    """Log-normal noise of 5 % with a few outliers of twice the time."""
    random = np.random.default_rng(seed)
    seconds = milliseconds / 1000 * np.exp(random.normal(0, 0.05, count))
    seconds[random.random(count) < 0.03] *= 2
    return Samples(tuple(seconds.tolist()), float(np.median(seconds)) * 1000, 0.0, 0.0, 0.0, 0.0, tokens)


def timed(decode: Samples | None, prefill: Samples | None = None, identity: Identity = WHO) -> Results:
    return Results(outcome.SCHEMA, MACHINE, (), (Latency(identity, Outcome.PASS, (), decode=decode, prefill=prefill),))


def reading(error: float, *, steps: int = 16, kl: float = 1e-9, top1: float = 1.0) -> Reading:
    return Reading((error,) * steps, (error,) * steps, (90.0,) * steps, (kl,) * steps, top1, 1.0, None, {}, {})


def checked(free: Reading | None, result: Outcome = Outcome.PASS, reasons: tuple[str, ...] = ()) -> Results:
    return Results(outcome.SCHEMA, MACHINE, (Parity(WHO, result, reasons, 16, BOUND, free, free),))


def read(kl: float, *, text: str = "novel.txt", result: Outcome = Outcome.PASS) -> Results:
    reading = TextReading(1024, 4100, kl, 0.01, 2.3, 2.3, 0.99)
    row = Quality(WHO, result, (), text, replace(BOUND, text_kl=2e-3), reading)
    return Results(outcome.SCHEMA, MACHINE, quality=(row,))


def only(changes: tuple[Change, ...], metric: str) -> Change:
    [change] = [change for change in changes if change.metric == metric]
    return change


@pytest.mark.parametrize("seed", range(5))
def test_a_slowdown_of_a_fifth_is_found_in_noise_and_so_is_the_speedup_back(seed: int) -> None:
    fast, slow = timed(samples(8.0, seed)), timed(samples(9.6, seed + 100))
    change = only(compare(fast, slow), "decode")
    assert change.verdict is Verdict.SLOWER
    assert change.ratio == pytest.approx(1.2, abs=0.05)
    assert change.p_value is not None
    assert change.p_value < 1e-6
    assert regressed(compare(fast, slow))
    assert only(compare(slow, fast), "decode").verdict is Verdict.FASTER
    assert not regressed(compare(slow, fast))


def test_equal_distributions_do_not_cry_wolf() -> None:
    wolves = [compare(timed(samples(8.0, seed)), timed(samples(8.0, seed + 500))) for seed in range(100)]
    assert not any(regressed(changes) for changes in wolves)


def test_a_significant_but_small_change_is_the_same() -> None:
    old, new = timed(samples(8.0, 1, count=4000)), timed(samples(8.16, 2, count=4000))
    change = only(compare(old, new), "decode")
    assert change.p_value is not None
    assert change.p_value < 0.01
    assert change.verdict is Verdict.SAME
    assert only(compare(old, new, slower=1.01), "decode").verdict is Verdict.SLOWER


def test_a_large_change_without_enough_samples_is_the_same() -> None:
    change = only(compare(timed(samples(8.0, 1, count=3)), timed(samples(12.0, 2, count=3))), "decode")
    assert change.ratio is not None
    assert change.ratio > 1.3
    assert change.verdict is Verdict.SAME


@pytest.mark.parametrize("evidence", ["emulated", "interpreted"])
def test_times_of_no_device_are_not_compared(evidence: str) -> None:
    nobody = replace(WHO, evidence=evidence)
    changes = compare(timed(samples(8.0, 0), identity=nobody), timed(samples(80.0, 1), identity=nobody))
    assert {change.metric for change in changes} == {"latency"}
    assert not regressed(changes)


def test_prompts_of_different_length_are_never_compared() -> None:
    old, new = (timed(None, samples(100.0 * n, n, tokens=64 * n)) for n in (1, 4))
    verdicts = {change.metric: change.verdict for change in compare(old, new)}
    assert verdicts["prefill of 64 tokens"] is Verdict.VANISHED
    assert verdicts["prefill of 256 tokens"] is Verdict.APPEARED
    assert not regressed(compare(old, new))


def test_samples_that_are_not_finite_or_absent_are_survived() -> None:
    odd = replace(samples(8.0, 1), seconds=(math.nan, math.inf))
    assert only(compare(timed(odd), timed(samples(8.0, 2))), "decode").verdict is Verdict.APPEARED


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (1e-4, 5e-4, Verdict.LESS_ACCURATE),
        (5e-4, 1e-4, Verdict.MORE_ACCURATE),
        (1e-4, 1.2e-4, Verdict.SAME),  # less than the factor that summation order explains
        (1e-7, 9e-7, Verdict.SAME),  # nine times, yet far below the bound of 1e-3
        (1e-4, math.nan, Verdict.LESS_ACCURATE),
        (math.nan, 1e-4, Verdict.MORE_ACCURATE),
        (math.nan, math.nan, Verdict.SAME),
        (0.0, 5e-4, Verdict.LESS_ACCURATE),
    ],
)
def test_accuracy_is_judged_by_the_worst_error(old: float, new: float, verdict: Verdict) -> None:
    changes = compare(checked(reading(old)), checked(reading(new)))
    assert only(changes, "max abs").verdict is verdict
    assert regressed(changes) is (verdict is Verdict.LESS_ACCURATE)


def test_kl_and_greedy_agreement_are_judged_too() -> None:
    old, new = checked(reading(1e-4)), checked(reading(1e-4, kl=5e-7, top1=0.9375))
    changes = compare(old, new)
    assert only(changes, "KL").verdict is Verdict.LESS_ACCURATE
    assert only(changes, "top-1").verdict is Verdict.LESS_ACCURATE
    assert only(changes, "max abs").verdict is Verdict.SAME


def test_traces_of_different_length_are_compared_where_both_have_steps() -> None:
    longer = replace(reading(1e-4, steps=32), max_abs=(1e-4,) * 16 + (9e-4,) * 16)
    changes = compare(checked(reading(1e-4)), checked(longer))
    assert only(changes, "max abs").verdict is Verdict.SAME
    assert "first 16 steps" in only(changes, "max abs").sentence
    assert not [change for change in changes if change.metric == "top-1"]


@pytest.mark.parametrize(
    ("old", "new", "worse"),
    [
        (Outcome.PASS, Outcome.MISSING, True),
        (Outcome.PASS, Outcome.FALLBACK, True),
        (Outcome.MISSING, Outcome.FAIL, True),
        (Outcome.FALLBACK, Outcome.SUSPICIOUS, True),
        (Outcome.COMPILED, Outcome.MISSING, True),
        (Outcome.FAIL, Outcome.MISSING, False),
        (Outcome.FAIL, Outcome.PASS, False),
        (Outcome.MISSING, Outcome.PASS, False),
    ],
)
def test_changed_outcomes_are_regressions_only_when_worse(old: Outcome, new: Outcome, worse: bool) -> None:
    changes = compare(checked(None, old), checked(None, new, ("for this reason",)))
    change = only(changes, "parity")
    assert change.verdict is Verdict.OUTCOME_CHANGED
    assert "for this reason" in change.sentence
    assert regressed(changes) is worse


def test_a_vanished_pass_is_a_regression_and_a_vanished_failure_is_not() -> None:
    nothing = Results(outcome.SCHEMA, MACHINE)
    lost = compare(checked(reading(1e-4)), nothing)
    assert [change.verdict for change in lost] == [Verdict.VANISHED]
    assert regressed(lost)
    assert not regressed(compare(checked(None, Outcome.FAIL), nothing))
    found = compare(nothing, checked(reading(1e-4)))
    assert [change.verdict for change in found] == [Verdict.APPEARED]
    assert not regressed(found)


def test_an_artifact_that_moved_to_another_folder_is_still_the_same() -> None:
    moved = replace(WHO, artifact="/elsewhere/art")
    changes = compare(timed(samples(8.0, 1)), timed(samples(8.0, 2), identity=moved))
    assert only(changes, "decode").verdict is Verdict.SAME


def test_rows_with_equal_names_pair_in_order() -> None:
    old = Results(outcome.SCHEMA, MACHINE, (), timed(samples(8.0, 1)).latency + timed(samples(20.0, 2)).latency)
    new = Results(outcome.SCHEMA, MACHINE, (), timed(samples(8.0, 3)).latency + timed(samples(20.0, 4)).latency)
    verdicts = [change.verdict for change in compare(old, new) if change.metric == "decode"]
    assert verdicts == [Verdict.SAME, Verdict.SAME]


def test_places_of_one_artifact_are_rows_of_their_own() -> None:
    there = replace(WHO, requested="ort:cpu-fused", observed="ort:cpu-fused")
    rows = [timed(samples(8.0, 1)).latency[0], timed(samples(20.0, 2), identity=there).latency[0]]
    one, other = (Results(outcome.SCHEMA, MACHINE, latency=tuple(order)) for order in (rows, rows[::-1]))
    assert {change.verdict for change in compare(one, other)} == {Verdict.SAME}


def test_different_machines_are_said_in_words() -> None:
    old = timed(samples(8.0, 1))
    new = replace(timed(samples(12.0, 2)), machine=replace(MACHINE, cpu="Other CPU", packages={"torch": "2.14.0"}))
    sentence = only(compare(old, new), "decode").sentence
    assert "the machines differ (cpu Test CPU 9000, now Other CPU)" in sentence
    assert "machines differ" not in only(compare(old, timed(samples(12.0, 2))), "decode").sentence
    assert machine_changes(old.machine, new.machine) == (
        "cpu: Test CPU 9000, now Other CPU",
        "torch: 2.13.0, now 2.14.0",
    )
    assert machine_changes(MACHINE, MACHINE) == ()
    slower = replace(MACHINE, governor="powersave", memory_bytes=8_000_000_000)
    assert machine_changes(MACHINE, slower) == (
        "memory_bytes: 16000000000, now 8000000000",
        "governor: performance, now powersave",
    )


def test_quality_on_the_same_text_is_compared_and_its_loss_is_a_regression() -> None:
    worse = compare(read(4e-4), read(8e-4))
    assert only(worse, "mean KL on text").verdict is Verdict.LESS_ACCURATE
    assert "novel.txt was 0.0004 and is 0.0008" in only(worse, "mean KL on text").sentence
    assert regressed(worse)
    assert only(compare(read(4e-4), read(4.1e-4)), "mean KL on text").verdict is Verdict.SAME
    other = compare(read(4e-4), read(8e-4, text="other.txt"))
    assert [change.metric for change in other] == ["quality"]
    assert regressed(compare(read(4e-4), read(4e-4, result=Outcome.FAIL)))
    assert regressed(compare(read(4e-4), Results(outcome.SCHEMA, MACHINE)))
