"""What every session keeps whatever the tokens: prompts equal steps, states can be saved, and stepping is pure."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import runtimes
from runtimes.contract import Array, Placement, Session, State, TensorSpec
from runtimes.errors import BadArtifact, WrongCall
from runtimes.session import ExplicitSession, Tensors
from tests.conftest import AWKWARD, Exports

pytestmark = pytest.mark.slow

VOCAB = AWKWARD["vocab"]
CLOSE = {"rtol": 0, "atol": 2e-5}  # a graph of several tokens sums in another order; logits are of order one

EACH = {"graphs": "each"}

SESSIONS: dict[str, Callable[[Exports], Any]] = {
    "ort, 7, one graph up to 8": lambda exports: exports("7", "onnx-cpu", prefill=(8, 3)),
    "ort, 7, graphs of 1, 3 and 8": lambda exports: exports("7", "onnx-cpu", prefill=(8, 3), options=EACH),
    "ort, 7, stacked": lambda exports: exports("7", "onnx-cpu", options={"state": "stacked"}),
    "ort, 4, one graph of 1 and 5": lambda exports: exports("4", "onnx-cpu", prefill=(5,)),
    "eager, 7": lambda exports: exports("7", "torch"),
    "eager, 4, graphs of 1 and 5": lambda exports: exports("4", "torch", prefill=(5,)),
}


@pytest.fixture(scope="module", params=SESSIONS)
def session(request: pytest.FixtureRequest, exports: Exports) -> Session:
    return runtimes.open_session(SESSIONS[request.param](exports))


def prompts(*, least: int = 1, most: int = 24) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, VOCAB - 1), min_size=least, max_size=most)


some = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def stepped(session: Session, tokens: list[int], state: State | None = None) -> tuple[Array, State]:
    state = session.initial_state() if state is None else state
    for token in tokens:
        step = session.step(token, state)
        state = step.state
    return step.logits, state


def same(session: Session, one: tuple[Array, State], other: tuple[Array, State], **tolerance: float) -> None:
    """Logits and every state tensor, to the last bit unless told otherwise."""
    pairs = [(one[0], other[0])]
    first, second = session.read_state(one[1]), session.read_state(other[1])
    assert list(first) == list(second)
    pairs += zip(first.values(), second.values(), strict=True)
    for a, b in pairs:
        if tolerance:
            np.testing.assert_allclose(a, b, **tolerance)
        else:
            np.testing.assert_array_equal(a, b)


@some
@given(tokens=prompts())
def test_a_prompt_equals_its_tokens_one_by_one(session: Session, tokens: list[int]) -> None:
    step = session.prefill(tokens, session.initial_state())
    assert (step.logits.shape, step.logits.dtype) == ((VOCAB,), np.float32)
    assert step.seconds > 0
    same(session, (step.logits, step.state), stepped(session, tokens), **CLOSE)


@some
@given(tokens=prompts(least=2), data=st.data())
def test_a_prompt_can_be_split_anywhere(session: Session, tokens: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(tokens) - 1))
    whole = session.prefill(tokens, session.initial_state())
    first = session.prefill(tokens[:cut], session.initial_state())
    second = session.prefill(tokens[cut:], first.state)
    same(session, (whole.logits, whole.state), (second.logits, second.state), **CLOSE)


def test_a_prompt_takes_the_smallest_graph_that_takes_as_much_and_the_time_of_all_calls() -> None:
    ran: list[tuple[int, list[int]]] = []

    def graph(size: int) -> Callable[[Array, Tensors], tuple[Array, Tensors]]:
        def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
            time.sleep(0.01)
            ran.append((size, tokens.tolist()))
            return np.zeros(9, np.float32), state

        return run

    placed = Placement("fake:cpu", "fake:cpu")
    fake = ExplicitSession([], {}, 9, {n: graph(n) for n in (8, 4, 1, 2)}, lambda: placed, up_to=(4, 8))
    step = fake.prefill([0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7], fake.initial_state())
    assert ran == [(8, [0, 1, 2, 3, 4, 5, 6, 7]), (4, [8, 5, 6, 7])]
    assert step.seconds >= 0.02
    ran.clear()
    fake.prefill([1, 2], fake.initial_state())
    fake.prefill([1, 2, 3], fake.initial_state())
    assert ran == [(2, [1, 2]), (4, [1, 2, 3])]


@some
@given(before=prompts(), after=prompts())
def test_a_state_can_be_saved_and_restored_anywhere(session: Session, before: list[int], after: list[int]) -> None:
    _, state = stepped(session, before)
    restored = session.write_state(session.read_state(state))
    same(session, stepped(session, after, state), stepped(session, after, restored))


@some
@given(before=prompts(), one=prompts(most=9), other=prompts(most=9))
def test_stepping_leaves_the_state_it_started_from(
    session: Session, before: list[int], one: list[int], other: list[int]
) -> None:
    _, state = stepped(session, before)
    kept = session.read_state(state)
    expected = stepped(session, one, state)
    stepped(session, other, state)
    session.prefill(other, state)
    same(session, stepped(session, one, state), expected)
    for name, array in session.read_state(state).items():
        np.testing.assert_array_equal(array, kept[name])


def test_a_state_is_not_the_arrays_it_was_written_from_or_read_into(session: Session) -> None:
    arrays = session.read_state(stepped(session, [1, 2, 3])[1])
    state = session.write_state(arrays)
    expected = stepped(session, [4], state)
    for array in (*arrays.values(), *session.read_state(state).values()):
        array[:] = 7
    same(session, stepped(session, [4], state), expected)


def test_the_initial_state_is_fresh_each_time(session: Session) -> None:
    for array in session.read_state(session.initial_state()).values():
        array[:] = 7
    fills = {np.unique(array).item() for array in session.read_state(session.initial_state()).values()}
    assert fills <= {0.0, np.float32(-1e30).item()}


@some
@given(
    token=st.one_of(
        st.integers(max_value=-1), st.integers(min_value=VOCAB), st.floats(), st.text(max_size=3), st.none()
    )
)
@example(token=VOCAB)
def test_what_is_no_token_is_refused(session: Session, token: Any) -> None:
    with pytest.raises(WrongCall, match="outside the vocabulary of 101"):
        session.step(token, session.initial_state())
    with pytest.raises(WrongCall, match="outside the vocabulary of 101"):
        session.prefill([1, token, 2], session.initial_state())


@pytest.mark.parametrize("kind", [int, np.int32, np.int64, np.uint8])
def test_tokens_of_any_integer_type_are_taken(session: Session, kind: type) -> None:
    start = session.initial_state()
    same(session, stepped(session, [kind(5)], start), stepped(session, [5], start))
    array = np.array([5, 6, 7], kind)
    step = session.prefill(array, start)  # type: ignore[arg-type]
    same(session, (step.logits, step.state), stepped(session, [5, 6, 7], start), **CLOSE)


def test_an_empty_prompt_is_refused(session: Session) -> None:
    with pytest.raises(WrongCall, match="at least one token"):
        session.prefill([], session.initial_state())


@some
@given(data=st.data())
def test_state_tensors_of_other_names_or_shapes_are_refused(session: Session, data: st.DataObject) -> None:
    arrays = session.read_state(session.initial_state())
    name = data.draw(st.sampled_from(sorted(arrays)))
    alter = data.draw(st.sampled_from(["remove", "rename", "add", "flatten", "grow", "empty"]))
    array = arrays.pop(name)
    if alter == "rename":
        arrays[f"{name}.next"] = array
    elif alter == "add":
        arrays |= {name: array, "another": array}
    elif alter != "remove":
        grown = np.concatenate([array, array], axis=-1)
        arrays[name] = {"flatten": array.reshape(-1), "grow": grown, "empty": array[:0]}[alter]
    with pytest.raises(WrongCall, match=name if alter != "add" else "another"):
        session.write_state(arrays)


def test_a_graph_that_gives_another_number_of_state_tensors_back_does_not_fit_its_manifest() -> None:
    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        return np.zeros(3, np.float32), state[1:]

    placed = Placement("test:cpu", "test:cpu")
    specs = [TensorSpec(f"blocks.0.{part}.shift", (1, 2), "float32", ("batch", "channel")) for part in ("att", "ffn")]
    session = ExplicitSession(specs, {}, 3, {1: run}, lambda: placed)
    with pytest.raises(BadArtifact, match="1 state tensors back, the manifest has 2"):
        session.step(0, session.initial_state())
