"""A golden trace: what the checkpoint itself computes over a token sequence, step by step; held in memory only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from exporter.progress import Progress, silent
from runtimes.contract import Array, Session
from runtimes.errors import WrongCall

FEWEST = 4
"""Steps below which a trace proves nothing: from a zero state, the first step hides most errors in the state."""
LIKELIEST = 64
"""Logits kept of a step that is not kept whole."""


@dataclass(frozen=True)
class Likeliest:
    """What is kept of a step's logits where not all are.

    ids, logits: (K,) int64 and float32, by falling logit: the likeliest tokens, and the one that followed in the text
    logsumexp:   over the whole vocabulary, so that the probability of each, and of all others together, is known
    spread:      standard deviation over the whole vocabulary
    """

    ids: Array
    logits: Array
    logsumexp: float
    spread: float
    vocab: int


Logits = Array | Likeliest


@dataclass(frozen=True)
class Trace:
    """A recorded run of T tokens.

    logits: entry t after token t: (vocab,) float32, or the likeliest of them
    states: position -> state tensors by name, of the positions that were kept: 0 is the start, t + 1 after token t
    name:   of the file it was read from, or ""
    """

    tokens: tuple[int, ...]
    logits: tuple[Logits, ...]
    states: Mapping[int, Mapping[str, Array]]
    name: str = ""

    @property
    def kept(self) -> tuple[int, ...]:
        """Steps whose states before and after were kept, so that they can be compared alone."""
        return tuple(step for step in range(len(self.tokens)) if step in self.states and step + 1 in self.states)

    @property
    def gaps(self) -> str:
        """What was not kept and is not compared, and the file that all was read from, as a sentence; "" for neither."""
        steps, whole = len(self.tokens), sum(not isinstance(logits, Likeliest) for logits in self.logits)
        if len(self.kept) == steps and whole == steps:
            return f"compared with {self.name}, which was recorded of the checkpoint before" if self.name else ""
        most = max((len(logits.ids) for logits in self.logits if isinstance(logits, Likeliest)), default=0)
        rest = f", at the others the {most} that count most and the sum of all others' probabilities" if most else ""
        return (
            f"compared with {self.name or 'a trace with gaps'}: local at {len(self.kept)} of {steps} steps, "
            f"free at all; states at {len(self.states)} of {steps + 1} positions; all logits at {whole} steps{rest}. "
            "The rest was not kept and not compared"
        )


def require_steps(count: int) -> None:
    """Raises WrongCall for fewer than FEWEST steps."""
    if count < FEWEST:
        raise WrongCall(
            f"{count} steps are too few to compare: an error in the state shows only after several",
            hint=f"use {FEWEST} steps or more",
        )


def spaced(count: int, every: int) -> tuple[int, ...]:
    """Every so many of `count` steps, the last of each stretch, and the very last."""
    return tuple(sorted({*range(every - 1, count, every), count - 1}))


def record(
    session: Session,
    tokens: Sequence[int],
    *,
    tuned: Mapping[str, Array] | None = None,
    keep: Collection[int] | None = None,
    likeliest: int = LIKELIEST,
    progress: Progress = silent,
) -> Trace:
    """Step through `tokens` from `beginning`; raises WrongCall for fewer than FEWEST tokens.

    keep:      steps of which all logits and the states before and after are kept; None for all
    likeliest: logits kept of every other step
    """
    require_steps(len(tokens))
    kept = range(len(tokens)) if keep is None else frozenset(keep)
    start = beginning(session, tuned)
    state = session.write_state(start)
    logits: list[Logits] = []
    states = {0: start}
    with progress("recording the reference", len(tokens)) as advance:
        for index, token in enumerate(tokens):
            step = session.step(token, state)
            state, own = step.state, np.array(step.logits, np.float32)
            following = tokens[index + 1] if index + 1 < len(tokens) else None
            logits.append(own if index in kept else shortened(own, likeliest, following))
            if index in kept or index + 1 in kept:
                states[index + 1] = copied(session.read_state(state))
            advance(1)
    return Trace(tuple(tokens), tuple(logits), states)


def shortened(logits: Array, count: int, following: int | None) -> Logits:
    """The `count` likeliest tokens and the following one; all where that is no shorter, or some are not finite."""
    if 2 * (count + 1) >= logits.size or not np.isfinite(logits).all():  # an id takes as much room as a logit
        return logits
    best = likeliest(logits, count + 1)
    if following is not None and following not in best:
        best[-1] = following
    values = logits.astype(np.float64)
    return Likeliest(best, logits[best], float(logsumexp(values)), float(values.std()), logits.size)


def likeliest(logits: Array, count: int) -> Array:
    """Ids of the largest logits by falling logit, the smaller id first where two are equal; the rest is not sorted."""
    least = np.partition(logits, -count)[-count]
    candidates = np.flatnonzero(logits >= least)
    return candidates[np.argsort(-logits[candidates].astype(np.float64), kind="stable")][:count]


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

    text: for models of bytes (id = byte + 1): its UTF-8 bytes, as `choose_from` takes them. Without it, ids uniform
          over the vocabulary.
    """
    if text is None:
        return tuple(np.random.default_rng(seed).integers(0, vocab, count).tolist())
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int64) + 1
    return choose_from(ids, count, vocab=vocab, seed=seed, unit="bytes")


def choose_from(ids: Array, count: int, *, vocab: int, seed: int, unit: str = "tokens") -> tuple[int, ...]:
    """Ids of a text from an offset that the seed picks, going round at the end.

    Raises WrongCall where the text does not fit the vocabulary.
    """
    if not ids.size or ids.max() >= vocab:
        raise WrongCall(f"a text of {ids.size} {unit} does not fit a vocabulary of {vocab}")
    start = int(np.random.default_rng(seed).integers(ids.size))
    return tuple(np.resize(np.roll(ids, -start), count).tolist())
