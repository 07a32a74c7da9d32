"""Drift: errors of a known course are called by its name, and too few steps say nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from small_rnn import PLACE, VOCAB, session

from runtimes.contract import Array
from runtimes.session import Tensors
from validation.drift import drift
from validation.metrics import Comparison, StepError, TensorError
from validation.outcome import Identity, Machine, Parity, Results
from validation.parity import check
from validation.reports import html, junit, markdown
from validation.tolerances import bound
from validation.trace import choose_tokens, record

STEPS = 1000


def comparison(course: Callable[[Array], Array], steps: int = STEPS, *, partly: bool = False) -> Comparison:
    """Errors that follow a course, with the scatter of real ones."""
    chance = np.random.default_rng(0)
    errors = course(np.arange(steps)) * chance.lognormal(0, 0.3, steps)
    whole = [not partly or step % 100 == 99 for step in range(steps)]
    found = Comparison()
    for step, error in enumerate(errors.tolist()):
        found.steps[step] = StepError(
            error * (50 if whole[step] and partly else 1), 0, None, 0, True, 1, 0, whole[step]
        )
        growth = 1 + step / steps
        found.states[step] = {"flat": TensorError(0, 1, 2.0, 2.0), "grown": TensorError(0, 1, growth, 3 * growth)}
    return found


@pytest.mark.parametrize(
    ("course", "shape", "said"),
    [
        (lambda t: 1e-5 + 0 * t, "flat", "the error does not grow"),
        (lambda t: 1e-5 * (1 + t / 200), "linear", "the error grows steadily"),
        (lambda t: 1e-5 * (1 + np.log(1 + t / 4)), "logarithmic", "as the logarithm of the token does"),
        (lambda t: 1e-5 * (2 - t / 800), "falling", "the error falls"),
        (lambda t: 1e-5 * (1 + t / 50_000), "flat", "the error does not grow"),
    ],
)
def test_a_course_is_called_by_its_name(course: Callable[[Array], Array], shape: str, said: str) -> None:
    found = drift(comparison(course), bound("fp32"))
    assert found
    assert (found.shape, found.steps) == (shape, STEPS)
    assert said in found.says
    assert found.low <= found.slope <= found.high


def test_the_slope_is_the_one_that_was_put_in() -> None:
    found = drift(comparison(lambda t: 1e-5 * (1 + t / 200)), bound("fp32"))
    assert found
    assert found.slope == pytest.approx(5e-5 * np.exp(0.3**2 / 2), rel=0.1)
    assert found.early < 2e-5 < 5e-5 < found.late
    assert "would be reached" not in found.says, "the bound is broken already"
    mild = drift(comparison(lambda t: 1e-6 * (1 + t / 200)), bound("fp32"))
    assert mild
    left = 1000 * (5e-5 - mild.late) / mild.slope
    assert f"the bound of 5e-05 would be reached {left:,.0f} tokens later" in mild.says


def test_the_state_that_grew_most_is_named_with_both_norms() -> None:
    found = drift(comparison(lambda t: 1e-5 + 0 * t), bound("fp32"))
    assert found
    assert (found.tensor, found.norm, found.reference_norm) == ("grown", pytest.approx(5.997), pytest.approx(1.999))
    assert found.norm_early == pytest.approx(3 * 1.249)
    assert "that of grown grew most since a quarter of the run, 1.60 times, from 3.75 to 6" in found.says


def test_steps_compared_whole_are_not_mixed_with_those_in_part() -> None:
    pure, mixed = (drift(comparison(lambda t: 1e-5 + 0 * t, partly=partly), bound("fp32")) for partly in (False, True))
    assert pure
    assert mixed
    assert (mixed.shape, mixed.steps) == ("flat", STEPS)
    assert mixed.late == pytest.approx(pure.late, rel=0.05), "ten errors fifty times as large are of another kind"


def test_few_steps_tell_no_slope() -> None:
    assert drift(comparison(lambda t: 1e-5 * t, steps=255), bound("fp32")) is None


@pytest.fixture(scope="module")
def drifting() -> Parity:
    """A session whose state is off by a little more with every step, against the healthy one."""
    tokens = choose_tokens(300, vocab=VOCAB, seed=0)

    def grow(calls: int, logits: Array, new: Tensors) -> tuple[Array, Tensors]:
        return logits + np.float32(1e-7 * calls), new

    golden = record(session("float64"), tokens)
    identity = Identity("folder", "small", "4", "fake", "fp32", PLACE, "")
    return check(session(fault=grow), golden, bound("int8"), identity, graph_sizes=())


def test_a_long_validation_reports_its_drift(drifting: Parity) -> None:
    assert drifting.compared == ""
    assert drifting.drift
    assert drifting.drift.shape == "linear"
    assert drifting.drift.slope == pytest.approx(1e-4, rel=0.05)


def test_every_report_says_it(drifting: Parity, capsys: pytest.CaptureFixture[str]) -> None:
    from rwkv_export.tables import print_results

    row = dataclasses.replace(drifting, compared="compared with a.safetensors: local at 4 of 300 steps")
    results = Results(1, Machine("Linux", "a processor", 2, 1 << 30, "", "3.11", {}), parity=(row,))
    print_results(results)
    printed = capsys.readouterr().out
    assert "per 1000 tokens" in printed
    assert "linear" in printed
    for text in (printed, html.render([results]), markdown.render(results), junit.render(results)):
        assert "the error grows steadily" in text
        assert "local at 4 of 300 steps" in text


def test_the_chart_puts_steps_where_they_were() -> None:
    from validation.reports import charts
    from validation.reports.rows import join

    tokens = choose_tokens(40, vocab=VOCAB, seed=0)
    golden = record(session("float64"), tokens, keep=(19, 39))
    row = check(session(), golden, bound("fp32"), Identity("f", "s", "4", "x", "fp32", PLACE, ""), graph_sizes=())
    assert row.local
    assert row.local.at == (19, 39)
    assert row.free
    assert row.free.at is None
    results = Results(1, Machine("Linux", "a processor", 2, 1 << 30, "", "3.11", {}), parity=(row,))
    assert "Line chart of the largest logit error" in (charts.drift(join([results])) or "")
