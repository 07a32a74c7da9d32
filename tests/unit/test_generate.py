"""Sampling against distributions computed by hand and by brute force, and what reaches the session."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from runtimes.contract import Array, Session, State, Step
from runtimes.errors import CheckFailed, WrongCall
from runtimes.generate import Spent, generate, nucleus

SECONDS = 0.25


class Scripted:
    """A session whose logits depend on the number of tokens it was fed; the state is that list of tokens."""

    def __init__(self, logits: Sequence[Sequence[float]]) -> None:
        self._logits = [np.array(row, np.float32) for row in logits]
        self.fed: list[int] = []

    def initial_state(self) -> State:
        return cast(State, ())

    def prefill(self, tokens: Sequence[int], state: State) -> Step:
        for token in tokens:
            step = self.step(token, state)
            state = step.state
        return step

    def step(self, token: int, state: State) -> Step:
        seen = (*cast(tuple[int, ...], state), token)
        self.fed = list(seen)
        return Step(self._logits[(len(seen) - 1) % len(self._logits)], cast(State, seen), SECONDS)


def session(*logits: Sequence[float]) -> Session:
    return cast(Session, Scripted(logits))


def softmax(logits: Sequence[float], temperature: float) -> Array:
    weights = np.exp(np.array(logits, np.float64) / temperature)
    return np.asarray(weights / weights.sum())


def smallest_sufficient_set(probabilities: Array, top_p: float) -> tuple[int, ...]:
    """By trying every set of tokens: the fewest whose sum reaches top_p, and of those the likeliest."""
    indices = range(len(probabilities))
    for size in range(1, len(probabilities) + 1):
        best = max(combinations(indices, size), key=lambda chosen: probabilities[list(chosen)].sum())
        if probabilities[list(best)].sum() >= top_p:
            return best
    return tuple(indices)


@given(
    # Well separated, so that no sum falls on top_p by rounding alone.
    logits=st.lists(st.integers(-40, 40), min_size=1, max_size=7, unique=True),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.5]),
    top_p=st.sampled_from([0.05, 0.31, 0.5, 0.77, 0.9, 0.99]),
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(
    logits: list[int], temperature: float, top_p: float
) -> None:
    scaled = [value / 10 for value in logits]
    whole = softmax(scaled, temperature)
    chosen = list(smallest_sufficient_set(whole, top_p))
    expected = np.zeros(len(whole))
    expected[chosen] = whole[chosen] / whole[chosen].sum()
    actual = nucleus(np.array(scaled), temperature=temperature, top_p=top_p)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


def test_top_p_of_one_keeps_every_token() -> None:
    logits = np.linspace(-3, 3, 50)
    np.testing.assert_allclose(nucleus(logits, temperature=1.0, top_p=1.0), softmax(list(logits), 1.0), rtol=1e-12)


def test_the_token_that_crosses_top_p_is_kept() -> None:
    logits = np.log([0.5, 0.3, 0.2])
    np.testing.assert_allclose(nucleus(logits, temperature=1.0, top_p=0.6), [0.625, 0.375, 0.0])


def test_large_logits_do_not_overflow() -> None:
    result = nucleus(np.array([3e4, 3e4 - 1, -3e4], np.float32), temperature=0.5, top_p=1.0)
    np.testing.assert_allclose(result, softmax([0.0, -1.0, -6e4], 0.5))


def test_draws_follow_the_nucleus() -> None:
    logits = [2.0, 1.0, 0.5, -1.0, -4.0]
    drawn = list(generate(session(logits), [1], tokens=4000, temperature=0.8, top_p=0.95, seed=3, stop=()))
    expected = nucleus(np.array(logits), temperature=0.8, top_p=0.95)
    counts = np.bincount(drawn, minlength=5)
    allowed = expected > 0
    assert counts[~allowed].sum() == 0
    assert stats.chisquare(counts[allowed], expected[allowed] * 4000).pvalue > 1e-3


def test_temperature_zero_is_greedy_whatever_the_seed() -> None:
    logits = ([0.0, 1.0, 0.9], [5.0, 1.0, 5.1])
    for seed in range(5):
        assert list(generate(session(*logits), [1], tokens=4, temperature=0, seed=seed, stop=())) == [1, 2, 1, 2]


def test_a_seed_repeats_itself_and_another_differs() -> None:
    logits = np.zeros(64).tolist()
    first, again, other = (list(generate(session(logits), [1], tokens=30, seed=seed)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_generation_ends_before_a_stop_token() -> None:
    rows = ([0.0, 0.0, 9.0], [0.0, 9.0, 0.0], [9.0, 0.0, 0.0])
    assert list(generate(session(*rows), [1], tokens=9, temperature=0)) == [2, 1]
    assert list(generate(session(*rows), [1], tokens=9, temperature=0, stop=(1,))) == [2]


def test_the_session_sees_the_prompt_and_then_each_token_once() -> None:
    scripted = Scripted([[0.0, 0.0, 9.0], [0.0, 9.0, 0.0]])
    assert list(generate(cast(Session, scripted), [3, 4], tokens=3, temperature=0)) == [1, 2, 1]
    assert scripted.fed == [3, 4, 1, 2]  # the last token's logits are not needed


def test_no_tokens_means_none() -> None:
    assert list(generate(session([1.0]), [1], tokens=0)) == []


@pytest.mark.parametrize(
    ("prompt", "settings", "named"),
    [
        ([], {"tokens": 1}, "prompt is empty"),
        ([1], {"tokens": -1}, "-1"),
        ([1], {"tokens": 1, "temperature": -0.5}, "-0.5"),
        ([1], {"tokens": 1, "temperature": float("nan")}, "nan"),
        ([1], {"tokens": 1, "top_p": 0.0}, "top_p is 0.0"),
        ([1], {"tokens": 1, "top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_settings_out_of_range_are_refused_by_value(prompt: list[int], settings: dict[str, float], named: str) -> None:
    with pytest.raises(WrongCall, match=named):
        list(generate(session([0.0, 1.0]), prompt, **settings))  # type: ignore[arg-type]


def test_logits_that_are_not_finite_are_not_sampled_from() -> None:
    with pytest.raises(CheckFailed, match="not finite"):
        list(generate(session([0.0, float("nan")]), [1], tokens=1))


def test_what_it_took_is_told_as_the_session_timed_it() -> None:
    spent = Spent()
    list(generate(session([0.0, 1.0]), [1, 0, 1], tokens=5, temperature=0, spent=spent))
    assert spent == Spent(prompt_tokens=3, prompt_seconds=SECONDS, tokens=4, seconds=4 * SECONDS)
