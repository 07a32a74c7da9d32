"""Numbers of the comparers against torch's and scipy's formulas, and what they refuse to compare."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from runtimes.contract import HALF_FILL
from runtimes.errors import CheckFailed
from validation.metrics import STATE_FLOOR, Comparison, compare_state, compare_step, read

PAIR = np.random.default_rng(0).normal(0, 4, (2, 300)).astype(np.float32)


def test_step_numbers_agree_with_torch() -> None:
    reference, target = torch.from_numpy(PAIR).double()
    step = compare_step(*PAIR)
    error = (target - reference).abs().max().item()
    assert step.max_abs == pytest.approx(error, rel=1e-12)
    assert step.rel_std == pytest.approx(error / reference.std(correction=0).item(), rel=1e-12)
    kl = torch.nn.functional.kl_div(target.log_softmax(0), reference.log_softmax(0), reduction="sum", log_target=True)
    assert step.kl == pytest.approx(kl.item(), rel=1e-12)
    noise = torch.nn.functional.mse_loss(target, reference) / reference.square().mean()
    assert step.sqnr_db == pytest.approx(-10 * math.log10(noise.item()), rel=1e-12)
    shared = set(reference.topk(10).indices.tolist()) & set(target.topk(10).indices.tolist())
    assert step.top10 == len(shared) / 10
    assert step.regret == pytest.approx((reference.max() - reference[target.argmax()]).item(), rel=1e-12)


def test_kl_is_from_the_reference_to_the_target() -> None:
    reference, target = np.log([0.9, 0.1]), np.log([0.5, 0.5])
    assert compare_step(reference, target).kl == pytest.approx(entropy([0.9, 0.1], [0.5, 0.5]), rel=1e-12)
    assert compare_step(reference, target).kl != pytest.approx(entropy([0.5, 0.5], [0.9, 0.1]), rel=1e-3)


def test_kl_is_finite_for_logits_whose_exponentials_are_not() -> None:
    step = compare_step(np.array([3e4, 0.0, -3e4]), np.array([-3e4, 0.0, 3e4]))
    assert step.kl == pytest.approx(6e4)


@given(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40), st.floats(1e-6, 1), st.integers(0, 9))
def test_bounded_error_bounds_kl_and_regret(logits: list[float], bound: float, seed: int) -> None:
    reference = np.array([*logits, 31.0])
    target = reference + np.random.default_rng(seed).uniform(-bound, bound, reference.size)
    step = compare_step(reference, target)
    assert step.kl <= bound**2 / 2 + 1e-12
    assert step.regret <= 2 * bound + 1e-12


def test_equal_logits_have_no_error_and_no_ratio() -> None:
    step = compare_step(PAIR[0], PAIR[0].copy())
    assert (step.max_abs, step.kl, step.sqnr_db, step.top1, step.top10, step.regret) == (0, 0, None, True, 1, 0)


@pytest.mark.parametrize(
    ("reference", "target", "sentence"),
    [
        (PAIR[0], PAIR[1][:-1], r"logits has shape \(299,\), the reference's is \(300,\)"),
        (PAIR[0], PAIR[1] * np.nan, "300 of 300 values of logits are NaN"),
        (PAIR[0], np.append(PAIR[1][:-2], [np.inf, -np.inf]), "2 of 300 values of logits are infinite"),
        (PAIR[0] * np.nan, PAIR[1], "values of the reference's logits are NaN"),
        (np.ones(4), np.ones(4), "reference's logits are all equal"),
        (np.ones(0), np.ones(0), "empty"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(reference: np.ndarray, target: np.ndarray, sentence: str) -> None:
    with pytest.raises(CheckFailed, match=sentence):
        compare_step(reference, target)


def test_state_numbers_and_their_summary() -> None:
    golden = {"a": np.array([[1.0, -8.0]]), "b": np.zeros((1, 2))}
    first = compare_state(golden, {"a": np.array([[1.5, -8.0]]), "b": np.zeros((1, 2))})
    second = compare_state(golden, {"a": np.array([[1.0, -7.0]]), "b": np.full((1, 2), 1e-6)})
    found = read(Comparison({0: compare_step(*PAIR), 1: compare_step(PAIR[0], PAIR[0])}, {0: first, 1: second}))
    assert found.state_max_abs == {"a": 1.0, "b": 1e-6}
    assert found.state_rel["a"] == 1 / 8
    assert found.state_rel["b"] == pytest.approx(1e-6 / STATE_FLOOR), "a tensor of zeros has no scale of its own"
    assert (found.top1, found.first_divergent) == (0.5, 0)
    later = read(Comparison({3: compare_step(PAIR[0], PAIR[0]), 7: compare_step(*PAIR)}, {3: first}))
    assert (later.at, later.first_divergent) == ((3, 7), 7), "of steps that were not all compared, the step's number"
    assert len(found.max_abs) == len(found.kl) == len(found.rel_std) == len(found.sqnr_db) == 2


def test_stand_ins_for_minus_infinity_are_equal_and_lend_no_scale() -> None:
    golden = {"pp": np.array([-1e30, -1e30])}
    assert compare_state(golden, {"pp": np.array([HALF_FILL, HALF_FILL], np.float16)})["pp"].max_abs == 0
    assert compare_state(golden, golden)["pp"].magnitude == 0
    assert compare_state(golden, {"pp": np.array([0.0, HALF_FILL])})["pp"].max_abs == -HALF_FILL
    mixed = compare_state({"pp": np.array([-1e30, 2.0])}, {"pp": np.array([-1e30, 2.5])})["pp"]
    assert (mixed.max_abs, mixed.magnitude) == (0.5, 2.0)


def test_axes_of_one_are_no_difference() -> None:
    values = np.arange(6.0)
    assert compare_state({"a": values.reshape(1, 6)}, {"a": values.reshape(1, 1, 1, 6)})["a"].max_abs == 0


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ({"a": np.ones((1, 2))}, "the state lacks b"),
        ({"a": np.ones((1, 2)), "b": np.ones(2), "c": np.ones(1)}, "the state has c, which the reference lacks"),
        ({"a": np.ones((2, 1, 2)), "b": np.ones(2)}, r"state a has shape \(2, 1, 2\)"),
        ({"a": np.ones((1, 2)), "b": np.array([1, np.inf])}, "1 of 2 values of state b are infinite"),
    ],
)
def test_states_that_do_not_match_are_refused_by_name(target: dict[str, np.ndarray], sentence: str) -> None:
    with pytest.raises(CheckFailed, match=sentence):
        compare_state({"a": np.ones((1, 2)), "b": np.ones(2)}, target)


def test_nothing_compared_is_no_reading() -> None:
    with pytest.raises(CheckFailed, match="nothing was compared"):
        read(Comparison())
    with pytest.raises(CheckFailed, match="nothing was compared"):
        read(Comparison(steps={0: compare_step(*PAIR)}))
