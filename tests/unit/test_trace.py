"""Golden traces and the tokens they are recorded on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_rnn import VOCAB, Model, session, specs

from runtimes.contract import Array, Placement
from runtimes.errors import WrongCall
from runtimes.session import ExplicitSession, Tensors
from validation.trace import choose_tokens, likeliest, record

TOKENS = (3, 1, 4, 1, 5)
WKV = specs("float32")[1].name


def test_trace_holds_every_step_and_the_states_between() -> None:
    trace, source = record(session(), TOKENS), session()
    assert trace.tokens == TOKENS
    assert np.stack(trace.logits).shape == (5, VOCAB)
    assert np.stack(trace.logits).dtype == np.float32
    states = [trace.states[position] for position in range(6)]
    assert len(trace.states) == 6
    assert trace.gaps == ""
    assert replace(trace, name="t.safetensors").gaps.startswith("compared with t.safetensors, which was recorded")
    for token, logits, before, after in zip(TOKENS, trace.logits, states, states[1:], strict=False):
        step = source.step(token, source.write_state(before))
        assert np.array_equal(step.logits, logits)
        assert all(np.array_equal(array, after[name]) for name, array in source.read_state(step.state).items())


def test_trace_is_detached_from_a_session_that_reuses_its_buffers() -> None:
    model, buffer = Model(), np.zeros(VOCAB, np.float32)

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        buffer[:], new = model(tokens, state)
        return buffer, new

    reused = ExplicitSession(specs("float32"), {}, VOCAB, {1: run}, lambda: Placement("", ""))
    assert np.array_equal(record(reused, TOKENS).logits, record(session(), TOKENS).logits)


def test_tuned_state_stands_in_for_constants_only() -> None:
    tuned = np.arange(18.0).reshape(1, 1, 2, 3, 3)
    assert np.array_equal(record(session(), TOKENS, tuned={WKV: tuned}).states[0][WKV], tuned[0])
    own = {WKV: np.arange(18.0, 0.0, -1.0).reshape(1, 2, 3, 3)}
    knowing = ExplicitSession(specs("float32"), own, VOCAB, {1: Model()}, lambda: Placement("", ""))
    assert np.array_equal(record(knowing, TOKENS, tuned={WKV: tuned}).states[0][WKV], own[WKV])


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(WrongCall, match="3 steps are too few"):
        record(session(), TOKENS[:3])


def test_random_tokens_repeat_with_the_seed_and_cover_the_vocabulary() -> None:
    first = choose_tokens(400, vocab=VOCAB, seed=1)
    assert first == choose_tokens(400, vocab=VOCAB, seed=1)
    assert first != choose_tokens(400, vocab=VOCAB, seed=2)
    assert set(first) == set(range(VOCAB))


def test_text_becomes_byte_ids_that_go_round() -> None:
    tokens = choose_tokens(12, vocab=257, seed=0, text="añb")
    cycle = [byte + 1 for byte in "añb".encode()]
    start = cycle.index(tokens[0])
    assert list(tokens) == [cycle[(start + index) % 4] for index in range(12)]
    long = "abcdefghijklmnopqrstuvwxyz"
    assert len({choose_tokens(5, vocab=257, seed=seed, text=long) for seed in range(8)}) > 1


def test_text_that_does_not_fit_is_refused() -> None:
    with pytest.raises(WrongCall, match="does not fit a vocabulary of 31"):
        choose_tokens(4, vocab=31, seed=0, text="abc")
    with pytest.raises(WrongCall, match="0 bytes"):
        choose_tokens(4, vocab=257, seed=0, text="")


def test_the_likeliest_are_those_of_a_stable_sort() -> None:
    chance = np.random.default_rng(0)
    for count in (1, 5, 40):
        logits = chance.integers(0, 9, 40).astype(np.float32)  # many are equal
        assert likeliest(logits, count).tolist() == np.argsort(-logits, kind="stable")[:count].tolist()
