"""Planted faults: each must be told from a healthy session by its outcome and its sentence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from small_rnn import PLACE, Model, session, specs

from runtimes.contract import Array, Placement, State
from runtimes.session import ExplicitSession, Tensors
from validation import judge
from validation.metrics import Comparison, StepError, TensorError
from validation.outcome import Bound, Identity, Outcome, Parity
from validation.parity import check
from validation.tolerances import bound
from validation.trace import Trace, choose_tokens, record

IDENTITY = Identity("folder", "small", "4", "fake", "fp32", PLACE, "")
TOKENS = choose_tokens(12, vocab=31, seed=0)
SHIFT, WKV, PP = (spec.name for spec in specs("float64"))


@pytest.fixture(scope="module")
def golden() -> Trace:
    return record(session("float64"), TOKENS)


def judged(target: ExplicitSession, golden: Trace, row: str = "fp32", sizes: tuple[int, ...] = (1, 4)) -> Parity:
    return check(target, golden, bound(row), IDENTITY, graph_sizes=sizes)


def test_healthy_session_passes_with_every_number_kept(golden: Trace) -> None:
    row = judged(session(), golden)
    assert (row.outcome, row.reasons, row.steps) == (Outcome.PASS, (), 12)
    assert row.local and row.free
    assert 0 < row.free.worst < 5e-5
    assert len(row.free.max_abs) == len(row.local.kl) == 12
    assert row.free.top1 == row.free.top10 == 1
    assert row.free.first_divergent is None
    assert set(row.free.state_rel) == {SHIFT, WKV, PP}
    assert set(row.prefill) == {"1", "4", "uneven"}
    assert row.identity.observed == PLACE
    assert row.identity.nodes == {"nodes": 9}
    assert row.bound == bound("fp32")


def test_half_precision_session_passes_in_its_own_class_only(golden: Trace) -> None:
    assert judged(session("float16"), golden, "fp16").outcome is Outcome.PASS
    row = judged(session("float16"), golden)
    assert row.outcome is Outcome.FAIL
    assert row.free and 1e-4 < row.free.state_rel[PP] < 5e-2, "minus infinity's stand-in must not drown the rest"


def test_states_written_to_a_half_precision_session_are_finite_copies(golden: Trace) -> None:
    target, written = session("float16"), []
    write = target.write_state

    def noted(arrays: dict[str, Array]) -> State:
        written.append(arrays)
        return write(arrays)

    target.write_state = noted  # type: ignore[method-assign, assignment]
    assert judged(target, golden, "fp16").outcome is Outcome.PASS
    given = [array for arrays in written for array in arrays.values()]
    assert len(given) > 3 * 12
    assert all(array.dtype == np.float16 and np.isfinite(array).all() for array in given)
    kept = [array for state in golden.states.values() for array in state.values()]
    assert not any(np.shares_memory(array, other) for array in given for other in kept)


def test_state_that_is_not_written_back_fails_both_readings(golden: Trace) -> None:
    old = {}

    def keep_first(calls: int, logits: Array, new: Tensors) -> tuple[Array, Tensors]:
        return logits, (new[0], old.setdefault("wkv", new[1]), new[2])

    row = judged(session(fault=keep_first), golden)
    assert row.outcome is Outcome.FAIL
    assert any(reason.startswith(f"local: state {WKV} is off by") for reason in row.reasons)
    assert any(reason.startswith("free: max|Δlogit|") for reason in row.reasons)


def test_drift_fails_the_free_reading_and_spares_the_local_one(golden: Trace) -> None:
    def grow(calls: int, logits: Array, new: Tensors) -> tuple[Array, Tensors]:
        return logits, (new[0], new[1] * np.float32(1 + 3e-5), new[2])

    row = judged(session(fault=grow), golden)
    assert row.outcome is Outcome.FAIL
    assert row.local and row.free
    assert row.local.worst < row.free.worst
    assert not any(reason.startswith("local: ") for reason in row.reasons)
    assert row.reasons[0].startswith("free: max|Δlogit| ")
    assert "exceeds 5e-05 (fp32)" in row.reasons[0]


def test_wrong_logits_name_the_worst_step_and_the_first(golden: Trace) -> None:
    def off(calls: int, logits: Array, new: Tensors) -> tuple[Array, Tensors]:
        step = calls % 12
        bump = 0.25 if step == 9 else 0.125 if step >= 7 else 0.0
        return logits + np.eye(1, len(logits), dtype=np.float32)[0] * bump, new

    row = judged(session(fault=off), golden)
    expected = "max|Δlogit| 0.25 at step 9 exceeds 5e-05 (fp32), first at step 7"
    assert {f"local: {expected}", f"free: {expected}"} <= set(row.reasons)


def test_nan_is_its_own_failure_and_leaves_no_numbers(golden: Trace) -> None:
    def spoil(calls: int, logits: Array, new: Tensors) -> tuple[Array, Tensors]:
        return (logits * np.float32("nan") if calls == 5 else logits), new

    row = judged(session(fault=spoil), golden)
    assert row.outcome is Outcome.FAIL
    assert row.local is None
    assert row.reasons == ("local: 31 of 31 values of logits are NaN, at step 5",)


def test_infinite_state_is_named_with_its_step(golden: Trace) -> None:
    def overflow(calls: int, logits: Array, new: Tensors) -> tuple[Array, Tensors]:
        return logits, (new[0], new[1] * np.float32("inf") if calls == 2 else new[1], new[2])

    assert (
        f"local: 18 of 18 values of state {WKV} are infinite, at step 2"
        in judged(session(fault=overflow), golden).reasons
    )


def test_transposed_state_is_seen_though_every_free_logit_is_right(golden: Trace) -> None:
    class Transposed(ExplicitSession):
        def read_state(self, state: object) -> dict[str, Array]:
            arrays = self.inner.read_state(state)
            return arrays | {WKV: arrays[WKV].swapaxes(2, 3)}

    target = session()
    target.__class__, target.inner = Transposed, session()
    row = judged(target, golden)
    assert row.outcome is Outcome.FAIL
    assert row.free and row.free.worst < 5e-5
    assert any(reason.startswith(f"free: state {WKV} is off by") for reason in row.reasons)


def test_state_updated_in_place_is_caught_by_stepping_again(golden: Trace) -> None:
    model = Model()

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        logits, new = model(tokens, state)
        for old, tensor in zip(state, new, strict=True):
            old[...] = tensor
        return logits, state

    target = ExplicitSession(specs("float32"), {}, 31, {1: run, 4: run}, lambda: Placement(PLACE, PLACE))
    kept = [{name: array.copy() for name, array in state.items()} for state in golden.states.values()]
    row = judged(target, golden)
    assert row.outcome is Outcome.FAIL
    assert any(reason.startswith("again: max|Δlogit|") for reason in row.reasons)
    assert not any(reason.startswith(("local: ", "free: ")) for reason in row.reasons)
    for before, after in zip(kept, golden.states.values(), strict=True):
        assert all(np.array_equal(before[name], after[name]) for name in before), "the trace must stay golden"


def test_wrong_start_is_named_before_the_first_step(golden: Trace) -> None:
    wrong = [dataclasses.replace(spec, fill=0.0) for spec in specs("float32")]
    row = judged(session(tensors=wrong), golden)
    assert row.outcome is Outcome.FAIL
    assert any(reason.startswith(f"free: state {PP} is off by 6e+04 before the first step") for reason in row.reasons)


def test_state_tensor_of_another_name_or_shape_is_refused_by_name(golden: Trace) -> None:
    renamed = [dataclasses.replace(spec, name=spec.name.replace("wkv", "kv")) for spec in specs("float32")]
    assert f"local: the state lacks {WKV}" in judged(session(tensors=renamed), golden).reasons
    small = [dataclasses.replace(specs("float32")[0], shape=(1, 1)), *specs("float32")[1:]]
    reasons = judged(session(tensors=small), golden).reasons
    assert f"local: state {SHIFT} has shape (1, 1), the reference's is (1, 6)" in reasons


def test_vocabulary_of_another_size_fails_without_numbers(golden: Trace) -> None:
    row = judged(session(fault=lambda calls, logits, new: (logits[:-1], new)), golden)
    assert row.reasons[0] == "local: logits has shape (30,), the reference's is (31,), at step 0"
    assert row.free is None


def test_prompt_longer_than_the_largest_graph_that_loses_its_end_is_named_uneven(golden: Trace) -> None:
    target = session()
    prefill = target.prefill
    target.prefill = lambda tokens, state: prefill(tokens[:4], state)  # type: ignore[method-assign]
    row = judged(target, golden)
    assert row.outcome is Outcome.FAIL
    assert all(reason.startswith("prefill uneven: ") for reason in row.reasons), row.reasons


@pytest.mark.parametrize("size", [4, 40])
def test_prefill_graph_that_drops_its_state_is_named_by_its_size(golden: Trace, size: int) -> None:
    model = Model()

    def forgetful(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        return model(tokens, (state[0], state[1] * 0, state[2]))

    graphs = {1: model, 2: model, size: forgetful}
    target = ExplicitSession(specs("float32"), {}, 31, graphs, lambda: Placement(PLACE, PLACE))
    row = judged(target, golden, sizes=tuple(graphs))
    assert row.outcome is Outcome.FAIL
    assert all(reason.startswith(f"prefill {size}: ") for reason in row.reasons), row.reasons
    assert row.prefill[str(size)] > 1e-3
    assert row.prefill["2"] < 1e-5


def test_running_elsewhere_is_a_fallback_even_with_perfect_numbers(golden: Trace) -> None:
    row = judged(session(observed="fake:host"), golden)
    assert row.outcome is Outcome.FALLBACK
    assert row.reasons == ("asked for fake:cpu, ran on fake:host (nodes: 9)",)
    assert row.identity.observed == "fake:host"


def test_running_elsewhere_and_wrong_is_a_failure_with_both_reasons(golden: Trace) -> None:
    row = judged(session(observed="fake:host", fault=lambda calls, logits, new: (logits + 1, new)), golden)
    assert row.outcome is Outcome.FAIL
    assert any("ran on fake:host" in reason for reason in row.reasons)
    assert any("max|Δlogit| 1 " in reason for reason in row.reasons)


def test_zero_error_is_suspicious_in_half_precision_and_fine_in_single() -> None:
    itself = record(session("float16"), TOKENS)
    row = judged(session("float16"), itself, "fp16")
    assert row.outcome is Outcome.SUSPICIOUS
    assert "which fp16 arithmetic cannot do" in row.reasons[0]
    assert judged(session("float32"), record(session("float32"), TOKENS)).outcome is Outcome.PASS


def test_an_error_in_one_of_the_readings_is_enough_not_to_be_suspicious() -> None:
    def drift(calls: int, logits: Array, new: Tensors) -> tuple[Array, Tensors]:
        return (logits + np.float32(1e-4) if calls >= len(TOKENS) else logits), new

    row = judged(session("float16", fault=drift), record(session("float16"), TOKENS), "fp16", sizes=())
    assert row.local and row.free
    assert row.local.worst == 0 < row.free.worst
    assert row.outcome is Outcome.PASS


def test_what_is_wrong_or_elsewhere_is_never_merely_suspicious() -> None:
    for reasons, observed, outcome in ((["wrong"], PLACE, Outcome.FAIL), ([], "fake:host", Outcome.FALLBACK)):
        placed = Placement(PLACE, observed)
        assert judge.verdict(reasons, bound("fp16"), exact=True, requested=PLACE, placed=placed)[0] is outcome


def test_what_the_session_raises_passes_through(golden: Trace) -> None:
    def crash(calls: int, logits: Array, new: Tensors) -> tuple[Array, Tensors]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        judged(session(fault=crash), golden)


def tied(regret: float) -> Comparison:
    step = StepError(max_abs=1e-6, rel_std=1e-6, sqnr_db=90.0, kl=0.0, top1=False, top10=1.0, regret=regret)
    return Comparison({3: step}, {3: {WKV: TensorError(0.0, 1.0)}})


def test_another_greedy_token_counts_unless_the_allowed_error_explains_it() -> None:
    row = Bound("row", max_abs=0.01, kl=1.0, top1=1.0, state_rel=1.0, reason="test")
    assert judge.broken("free", tied(0.02), row) == []
    assert judge.broken("free", tied(0.021), row) == [
        "free: greedy token differs at step 3, where the reference prefers its own by 0.021: top-1 0 is below 1 (row)"
    ]


def test_kl_has_its_own_sentence() -> None:
    step = StepError(max_abs=0.0, rel_std=0.0, sqnr_db=None, kl=0.5, top1=True, top10=1.0, regret=0.0)
    row = Bound("row", max_abs=1.0, kl=0.1, top1=1.0, state_rel=1.0, reason="test")
    found = judge.broken("free", Comparison({2: step}, {2: {WKV: TensorError(0.0, 1.0)}}), row)
    assert found == ["free: KL 0.5 nats at step 2 exceeds 0.1 (row)"]


def test_state_error_counts_from_its_bound_on_and_names_the_first_tensor() -> None:
    step = StepError(max_abs=0.0, rel_std=0.0, sqnr_db=None, kl=0.0, top1=True, top10=1.0, regret=0.0)
    row = Bound("row", max_abs=1.0, kl=1.0, top1=1.0, state_rel=0.125, reason="test")

    def found(*errors: float) -> list[str]:
        states = {index: {SHIFT: TensorError(0.0, 4.0), WKV: TensorError(e, 4.0)} for index, e in enumerate(errors)}
        return judge.broken("free", Comparison({0: step}, states), row)

    assert found(0.5, 0.25) == []
    assert found(0.5, 0.75) == [
        f"free: state {WKV} is off by 0.75 after step 1, 0.188 of its largest value exceeds 0.125 (row)"
    ]
    both = {0: {SHIFT: TensorError(1.0, 4.0), WKV: TensorError(9.0, 4.0)}}
    (sentence,) = judge.broken("free", Comparison({0: step}, both), row)
    assert sentence.startswith(f"free: state {SHIFT} is off by 1 after step 0, ")
    assert sentence.endswith("; 1 more tensors too")
