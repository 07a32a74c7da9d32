"""Is an artifact right? Two readings of one golden trace, a second look at the state, and prefill against stepping.

It measures no time and moves no bound: what a bound allows is in tolerances.toml, what follows from it in judge.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from exporter.progress import Advance, Progress, silent
from runtimes.contract import HALF_FILL, Array, Session, State, Step
from runtimes.errors import CheckFailed
from validation import judge
from validation.drift import drift
from validation.metrics import Comparison, check_state, compare_state, compare_step, read
from validation.outcome import Bound, Drift, Identity, Parity, Reading, placed_at
from validation.trace import Logits, Trace, copied

LEAD = 3
"""Tokens stepped before a prefill graph is tried, so that it starts from a state that is not zero."""
SINGLES = 16
"""Tokens prefilled one by one."""

AGAINST_REFERENCE = ("local", "free")
"""Readings of the trace; the others compare a session with itself."""

Run = Callable[[], Comparison]


@dataclass(frozen=True)
class Seen:
    """What one call gave, copied: the logits and the state after it, empty where nobody asked for it."""

    logits: Array
    state: Mapping[str, Array]


@dataclass(frozen=True)
class Expected:
    """What a call should give, as far as the trace kept it: a state that was not kept is empty."""

    logits: Logits
    state: Mapping[str, Array]


@dataclass(frozen=True)
class Chunking:
    """A way of feeding a prompt: after `start` stepped tokens, prefill calls of these many tokens."""

    name: str
    start: int
    calls: tuple[int, ...]

    @property
    def end(self) -> int:
        """Tokens fed in all."""
        return self.start + sum(self.calls)


def check(
    session: Session,
    trace: Trace,
    bound: Bound,
    identity: Identity,
    *,
    graph_sizes: Sequence[int],
    itself: Bound | None = None,
    progress: Progress = silent,
) -> Parity:
    """Compare a session with the trace of the checkpoint it was made from.

    graph_sizes: tokens per call of the artifact's graphs, e.g. (1, 64); none compares with the trace and no more
    itself:      what the session's comparisons with itself must keep, where not `bound`

    A reading that cannot be taken (names or shapes differ, NaN) is a failure without numbers. What the session itself
    raises passes through.
    """
    sizes = sorted(set(graph_sizes))
    readings: dict[str, Reading] = {}
    reasons: list[str] = []
    grown: Drift | None = None
    work = len(trace.kept) + len(trace.tokens) + _reach(sizes)
    with progress(f"{identity.artifact} on {identity.requested}", work) as advance:
        for label, run in _runs(session, trace, sizes, advance):
            try:
                comparison = run()
            except CheckFailed as failure:
                reasons.append(f"{label}: {failure.message}")
            else:
                readings[label] = read(comparison)
                grown = drift(comparison, bound) if label == "free" else grown
                row = bound if label in AGAINST_REFERENCE else itself or bound
                reasons += judge.broken(label, comparison, row)
    local, free, placed = readings.get("local"), readings.get("free"), session.placement()
    exact = all(reading is not None and reading.worst == 0 for reading in (local, free))
    outcome, why = judge.verdict(reasons, bound, exact=exact, requested=identity.requested, placed=placed)
    return Parity(
        identity=placed_at(identity, placed),
        outcome=outcome,
        reasons=why,
        steps=len(trace.tokens),
        bound=bound,
        local=local,
        free=free,
        prefill={
            label.removeprefix("prefill "): max(reading.worst, *reading.state_max_abs.values())
            for label, reading in readings.items()
            if label.startswith("prefill ")
        },
        compared=trace.gaps,
        drift=grown,
    )


def _runs(session: Session, trace: Trace, sizes: Sequence[int], advance: Advance) -> Iterator[tuple[str, Run]]:
    yield "local", partial(_local, session, trace, advance)
    yield "free", partial(follow, session, trace, advance)
    if not sizes:
        return
    yield "again", partial(_again, session, trace)
    chunkings = _chunkings(sizes)
    tokens = np.resize(trace.tokens, _reach(sizes)).tolist()  # goes round where a graph takes more than the trace has
    marks = {mark for chunking in chunkings for mark in (chunking.start, chunking.end)}
    stepped = _stepped(session, tokens, marks, advance)
    for chunking in chunkings:
        yield f"prefill {chunking.name}", partial(_prefill, session, tokens, stepped, chunking)


def _chunkings(sizes: Sequence[int]) -> list[Chunking]:
    whole = [Chunking(str(size), LEAD, (size,)) for size in sizes if size > 1]
    return [Chunking("1", 0, (1,) * SINGLES), *whole, Chunking("uneven", 0, (sizes[-1] + LEAD,))]


def _reach(sizes: Sequence[int]) -> int:
    """How many tokens the chunkings need."""
    if not sizes:
        return 0
    return max(chunking.end for chunking in _chunkings(sizes))


def _local(session: Session, trace: Trace, advance: Advance) -> Comparison:
    """The reference's state is written before every step that was kept, so that each step stands alone."""
    compared, own = Comparison(), session.read_state(session.initial_state())
    for index in trace.kept:
        state = session.write_state(fitted(trace.states[index], own))
        _add(compared, index, _golden(trace, index), _seen(session, session.step(trace.tokens[index], state)))
        advance(1)
    return compared


def follow(session: Session, trace: Trace, advance: Advance = lambda amount: None) -> Comparison:
    """Free-running: the session keeps its own state from its own start."""
    state = session.initial_state()
    with _located("before the first step"):
        compared = Comparison(states={-1: compare_state(trace.states[0], session.read_state(state))})
    for index, token in enumerate(trace.tokens):
        step, expected = session.step(token, state), _golden(trace, index)
        _add(compared, index, expected, _seen(session, step) if expected.state else Seen(np.array(step.logits), {}))
        state = step.state
        advance(1)
    return compared


def _again(session: Session, trace: Trace) -> Comparison:
    """The session against itself: stepping twice from one state, with another step between, must give the same.

    Catches state that is updated in place, which neither reading sees.
    """
    initial = session.initial_state()
    middle = min(trace.kept, key=lambda step: abs(step - len(trace.tokens) // 2))
    written = session.write_state(fitted(trace.states[middle], session.read_state(initial)))
    starts = {0: initial, middle: written}
    before = {index: _seen(session, session.step(trace.tokens[index], state)) for index, state in starts.items()}
    compared = Comparison()
    for index, state in starts.items():
        _add(compared, index, before[index], _seen(session, session.step(trace.tokens[index], state)))
    return compared


def _stepped(
    session: Session, tokens: Sequence[int], marks: Collection[int], advance: Advance
) -> dict[int, tuple[Seen, State]]:
    """What stepping gives after each number of tokens in `marks`, and the state itself, which stays valid."""
    state, after = session.initial_state(), {}
    for count, token in enumerate(tokens, start=1):
        step = session.step(token, state)
        state = step.state
        if count in marks:
            after[count] = (_seen(session, step), state)
        advance(1)
    return after


def _prefill(
    session: Session, tokens: Sequence[int], stepped: Mapping[int, tuple[Seen, State]], chunking: Chunking
) -> Comparison:
    """Prefill calls against having stepped as far."""
    state, done = session.initial_state(), chunking.start
    if chunking.start:
        _, state = stepped[chunking.start]
    for size in chunking.calls:
        step = session.prefill(tokens[done : done + size], state)
        state, done = step.state, done + size
    expected, _ = stepped[done]
    compared = Comparison()
    _add(compared, done - 1, expected, _seen(session, step))
    return compared


def _add(compared: Comparison, index: int, expected: Expected | Seen, seen: Seen) -> None:
    with _located(f"at step {index}"):
        compared.steps[index] = compare_step(expected.logits, seen.logits)
        if expected.state:
            compared.states[index] = compare_state(expected.state, seen.state)


def _golden(trace: Trace, index: int) -> Expected:
    return Expected(trace.logits[index], trace.states.get(index + 1, {}))


def _seen(session: Session, step: Step) -> Seen:
    return Seen(np.array(step.logits), copied(session.read_state(step.state)))


def fitted(golden: Mapping[str, Array], own: Mapping[str, Array]) -> dict[str, Array]:
    """Copies of the golden tensors in the session's own dtypes and shapes, minus infinity's stand-in kept finite."""
    check_state(golden, own)
    fitted = {}
    for name, array in golden.items():
        like = own[name]
        values = np.maximum(array, HALF_FILL) if like.dtype == np.float16 else array
        fitted[name] = np.array(values, like.dtype).reshape(like.shape)
    return fitted


@contextmanager
def _located(place: str) -> Iterator[None]:
    try:
        yield
    except CheckFailed as failure:
        raise CheckFailed(f"{failure.message}, {place}") from failure
