"""A golden trace: what the checkpoint itself computes over a token sequence, step by step; held in memory only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from exporter.progress import Progress, silent
from runtimes.contract import Array, Session
from runtimes.errors import WrongCall

FEWEST = 4
"""Steps below which a trace proves nothing: from a zero state, the first step hides most errors in the state."""


@dataclass(frozen=True)
class Trace:
    """A recorded run of T tokens.

    logits: (T, vocab) float32, row t after token t
    states: T + 1 dicts of state tensors by name: states[t] before token t, the last after all
    """

    tokens: tuple[int, ...]
    logits: Array
    states: tuple[Mapping[str, Array], ...]


def require_steps(count: int) -> None:
    """Raises WrongCall for fewer than FEWEST steps."""
    if count < FEWEST:
        raise WrongCall(
            f"{count} steps are too few to compare: an error in the state shows only after several",
            hint=f"use {FEWEST} steps or more",
        )


def record(
    session: Session, tokens: Sequence[int], *, tuned: Mapping[str, Array] | None = None, progress: Progress = silent
) -> Trace:
    """Step through `tokens` from `beginning`; raises WrongCall for fewer than FEWEST tokens."""
    require_steps(len(tokens))
    start = beginning(session, tuned)
    state = session.write_state(start)
    logits, states = [], [start]
    with progress("recording the reference", len(tokens)) as advance:
        for token in tokens:
            step = session.step(token, state)
            state = step.state
            logits.append(np.array(step.logits, np.float32))
            states.append(copied(session.read_state(state)))
            advance(1)
    return Trace(tuple(tokens), np.stack(logits), tuple(states))


def beginning(session: Session, tuned: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """The reference's state before the first token.

    tuned: initial tensors that came in a file of their own; they stand in where the session has a constant, never
           where it has tuned values itself, which an artifact must have kept
    """
    start = copied(session.read_state(session.initial_state()))
    for name, array in (tuned or {}).items():
        if name in start and not np.ptp(start[name]):
            start[name] = np.array(array, start[name].dtype).reshape(start[name].shape)
    return start


def copied(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays, detached from whatever the session does next."""
    return {name: np.array(array) for name, array in arrays.items()}


def choose_tokens(count: int, *, vocab: int, seed: int, text: str | None = None) -> tuple[int, ...]:
    """The tokens an artifact is validated on; the same arguments give the same tokens.

    text: for models of bytes (id = byte + 1): its UTF-8 bytes from an offset that the seed picks, going round at the
          end. Without it, ids uniform over the vocabulary. Raises WrongCall where the text does not fit the vocabulary.
    """
    chance = np.random.default_rng(seed)
    if text is None:
        return tuple(chance.integers(0, vocab, count).tolist())
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int64) + 1
    if not ids.size or ids.max() >= vocab:
        raise WrongCall(f"a text of {ids.size} bytes does not fit a vocabulary of {vocab}")
    start = int(chance.integers(ids.size))
    return tuple(np.resize(np.roll(ids, -start), count).tolist())
