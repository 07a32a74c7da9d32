"""Timing over sessions whose clock is a list of seconds: summaries against numpy and scipy, and each diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, repeat

import numpy as np
import pytest
from scipy.stats import median_abs_deviation
from small_rnn import VOCAB, session

from runtimes.contract import State, Step
from runtimes.errors import CheckFailed
from runtimes.session import ExplicitSession
from validation import diagnosis, machine
from validation.latency import MOST_STEPS, PREFILL_SECONDS, REPETITIONS, WINDOW, summarise, time_session
from validation.outcome import Energy, Method

PROMPT = (1, 2, 3, 4, 5, 6)
NOISE = np.random.default_rng(0).normal(1.0, 0.03, 128)


class Clocked:
    """A session that reports the seconds of an iterator for its steps; prefills take `prompt` seconds."""

    def __init__(self, seconds: Iterator[float], prompt: float = 0.5, spoil: float = 1.0) -> None:
        self.inner: ExplicitSession = session()
        self.seconds, self.prompt, self.spoil = seconds, prompt, spoil
        self.steps, self.prefills = 0, 0
        self.initial_state = self.inner.initial_state

    def step(self, token: int, state: State) -> Step:
        assert 0 <= token < VOCAB
        self.steps += 1
        step = self.inner.step(token, state)
        return Step(step.logits * np.float32(self.spoil), step.state, next(self.seconds))

    def prefill(self, tokens: Sequence[int], state: State) -> Step:
        self.prefills += 1
        step = self.inner.prefill(tokens, state)
        return Step(step.logits, step.state, self.prompt * (10 if self.prefills == 1 else 1))


def steady(decode: Sequence[float], first: float = 9.0) -> Iterator[float]:
    """A slow first token, a warm-up that settles at once, then `decode`."""
    return chain([first], repeat(1e-3, 2 * WINDOW), decode)


def test_summary_agrees_with_numpy_and_scipy() -> None:
    samples = summarise(NOISE.tolist(), 7)
    assert samples.median_ms == pytest.approx(1e3 * np.median(NOISE))
    assert samples.p90_ms == pytest.approx(1e3 * np.quantile(NOISE, 0.9))
    assert samples.p99_ms == pytest.approx(1e3 * np.quantile(NOISE, 0.99))
    assert samples.mad_ms == pytest.approx(1e3 * median_abs_deviation(NOISE))
    assert samples.min_ms == pytest.approx(1e3 * NOISE.min())
    assert samples.seconds == tuple(NOISE)
    assert samples.tokens == 7


def test_first_token_warm_up_prefill_and_decode_are_kept_apart() -> None:
    decode = [0.002 + 1e-6 * index for index in range(40)]
    timed = Clocked(steady(decode))
    timing = time_session(timed, PROMPT, tokens=40)  # type: ignore[arg-type]
    assert timing.first_token_s == 9.0
    assert timing.decode.seconds == tuple(decode)
    assert timing.decode.tokens == 1
    assert timing.prefill.seconds == (0.5,) * REPETITIONS, "the first prefill warms up"
    assert timing.prefill.tokens == len(PROMPT)
    assert timing.warnings == ()
    assert timing.rss_bytes > 1e6
    assert timed.steps == 1 + 2 * WINDOW + 40


def test_warm_up_that_never_settles_is_bounded_and_told() -> None:
    timed = Clocked(chain([1.0], (0.001 * 1.05**index for index in range(MOST_STEPS)), repeat(0.01)))
    timing = time_session(timed, PROMPT, tokens=40)  # type: ignore[arg-type]
    assert timed.steps == 1 + MOST_STEPS + 40
    assert timing.warnings == (diagnosis.UNSETTLED,)


def test_slow_sessions_get_fewer_repetitions() -> None:
    timed = Clocked(repeat(3.0), prompt=PREFILL_SECONDS)
    timing = time_session(timed, PROMPT, tokens=4)  # type: ignore[arg-type]
    assert len(timing.prefill.seconds) == 2
    assert timed.steps == 1 + 2 + 4, "warm-up stops when its seconds are spent"


def test_logits_that_are_not_finite_are_not_timed() -> None:
    with pytest.raises(CheckFailed, match="NaN or infinite values after 4 generated tokens"):
        time_session(Clocked(repeat(1.0), spoil=float("nan")), PROMPT, tokens=4)  # type: ignore[arg-type]


def test_progress_reaches_its_total() -> None:
    seen: list[int] = []

    @contextmanager
    def progress(text: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        assert (text, total) == ("here", len(PROMPT) * (REPETITIONS + 1) + 40)
        yield seen.append

    time_session(Clocked(steady([0.002] * 40)), PROMPT, tokens=40, text="here", progress=progress)  # type: ignore[arg-type]
    assert sum(seen) == len(PROMPT) * (REPETITIONS + 1) + 40


def test_throttling_is_diagnosed_from_a_rising_run() -> None:
    gradual = NOISE * np.linspace(1, 2.5, 128)
    sudden = NOISE * np.where(np.arange(128) < 60, 1, 1.6)
    (first,), (second,) = diagnosis.diagnose(gradual.tolist()), diagnosis.diagnose(sudden.tolist())
    for sentence in (first, second):
        assert "over the run: probably throttling; let the machine cool down" in sentence
    assert "slows to 2.0x" in first


def test_two_speeds_are_diagnosed_whatever_their_order() -> None:
    mixed = NOISE * np.where(np.random.default_rng(1).random(128) < 0.3, 0.0155, 0.01)
    (sentence,) = diagnosis.diagnose(mixed.tolist())
    assert "two groups, 10 ms and 15.5 ms (" in sentence
    assert "taskset" in sentence


def test_scattered_outliers_are_diagnosed_as_interference() -> None:
    chance = np.random.default_rng(5)
    for share in (0.08, 0.12):
        slow = chance.random(128) < share
        (sentence,) = diagnosis.diagnose(np.where(slow, 4 * NOISE, NOISE).tolist())
        assert "x the median: something else uses this machine" in sentence


def test_stalls_at_equal_distances_are_diagnosed_as_a_timer() -> None:
    for every in (5, 12):
        slow = np.arange(128) % every == 3
        (sentence,) = diagnosis.diagnose((0.01 * np.where(slow, 4 * NOISE, NOISE)).tolist())
        assert sentence.startswith(f"every {every} tokens, or ")
        assert "x the median: something runs on a timer" in sentence


def test_stalls_at_equal_times_are_found_where_tokens_are_uneven() -> None:
    chance, seconds, clock, due = np.random.default_rng(6), [], 0.0, 0.2
    for _ in range(256):
        step = float(chance.choice([0.008, 0.012]))
        if clock + step >= due:
            step, due = step + 0.04, due + 0.2
        clock += step
        seconds.append(step)
    (sentence,) = diagnosis.diagnose(seconds)
    assert "ms, one takes" in sentence
    assert float(sentence.split(" or ")[1].split(" ms")[0]) == pytest.approx(200, rel=0.02)


def test_a_coarse_clock_and_a_shared_processor_are_told() -> None:
    method = Method(16, True, 1.0, clock_step_s=1e-7, clock_read_s=5e-8, stolen=0.01)
    assert diagnosis.surroundings(1e-3, method) == []
    (coarse,) = diagnosis.surroundings(2e-6, method)
    assert coarse.startswith("the clock is good for 5.0% of a step only")
    (shared,) = diagnosis.surroundings(1e-3, replace(method, stolen=0.3))
    assert shared.startswith("the host of this virtual machine gave 30% of its processor time to others")
    assert diagnosis.surroundings(1e-3, replace(method, stolen=None)) == []


def test_the_method_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([(10.0, 100.0), (15.0, 200.0)])
    monkeypatch.setattr(machine, "stolen", lambda: next(shares))
    timing = time_session(Clocked(steady([0.002] * 40)), PROMPT, tokens=40)  # type: ignore[arg-type]
    method = timing.method
    assert (method.warm_up_steps, method.settled, method.stolen) == (2 * WINDOW, True, 0.05)
    assert 0 < method.wall_s < 5
    assert 0 < method.clock_step_s < 1e-3
    assert 0 < method.clock_read_s < 1e-3
    assert "gave 5% of its processor time to others" in timing.warnings[-1]


def test_only_decode_is_metered() -> None:
    timed = Clocked(steady([0.002] * 40))

    class Meter:
        def start(self) -> None:
            self.steps = timed.steps

        def stop(self, tokens: int, seconds: float) -> Energy:
            assert (timed.steps - self.steps, tokens) == (40, 40)
            return Energy(seconds, "all of it")

    timing = time_session(timed, PROMPT, tokens=40, meter=Meter())  # type: ignore[arg-type]
    assert timing.energy == Energy(timing.method.wall_s, "all of it")


def test_this_machine_has_a_clock_and_times_that_grow() -> None:
    step, read = machine.clock()
    assert 0 < step < 1e-3
    assert 0 < read < 1e-3
    before, after = machine.stolen(), machine.stolen()
    if before is not None and after is not None:
        assert 0 <= before[0] < before[1] <= after[1]


def test_few_samples_and_a_coarse_clock_are_told() -> None:
    assert diagnosis.diagnose([0.01] * 12) == ["12 decode samples are too few for a p99; use --tokens 30 or more"]
    (sentence,) = diagnosis.diagnose([0.0, 0.001] * 40)
    assert "took 0 s" in sentence


def test_background_load_is_told_above_a_quarter_of_the_machine() -> None:
    assert diagnosis.background(0.25) == []
    assert diagnosis.background(0.83) == [
        "other programs used 83% of the processors before the run; close them and measure again"
    ]


def test_ordinary_spreads_raise_no_alarm() -> None:
    chance = np.random.default_rng(3)
    draws = [
        lambda: chance.normal(1, 0.05, 128),
        lambda: chance.uniform(0.9, 1.1, 128),
        lambda: 1 + chance.exponential(0.1, 128),
        lambda: chance.lognormal(0, 0.2, 128),
    ]
    found = [diagnosis.diagnose(draws[index % 4]().tolist()) for index in range(200)]
    assert not any(found)


def test_each_diagnosis_gets_its_samples_in_order_of_time() -> None:
    ramp = [0.001 * (1 + index / 20) for index in range(64)]
    timing = time_session(Clocked(steady(ramp)), PROMPT, tokens=64)  # type: ignore[arg-type]
    assert "throttling" in timing.warnings[0]
    assert not any(diagnosis.diagnose(ramp[::-1])), "getting faster is no throttling"
