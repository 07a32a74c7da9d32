"""Reads what rwkv-step printed and dumped, and compares it with a session fed the same calls; judges nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtimes.contract import Array, Session, TensorSpec
from runtimes.errors import CheckFailed, WrongCall
from runtimes.schema import SchemaError, from_plain

FLOOR = 1e-3
"""Least magnitude that a state tensor's difference is measured against."""


@dataclass(frozen=True)
class Told:
    """The line of JSON; times in milliseconds, absent where the processor was emulated.

    calls:  tokens of each call; fed: all ids in order; greedy: the likeliest id after each call
    digest: 64-bit FNV-1a of the logits of all calls
    decode_ms, prefill_ms: one sample a call, the very first call left out
    """

    model: str
    machine: str
    delegates: tuple[str, ...]
    threads: int
    emulated: bool
    calls: tuple[int, ...]
    fed: tuple[int, ...]
    greedy: tuple[int, ...]
    digest: str
    cpu: str | None = None
    peak_rss_bytes: int | None = None
    load_ms: float | None = None
    first_call_ms: float | None = None
    decode_ms: tuple[float, ...] = ()
    prefill_ms: tuple[float, ...] = ()
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Agreement:
    """The device against the session, both with their own state carried.

    max_abs:   largest absolute difference of a logit
    rel_std:   that / standard deviation of the session's logits
    top1:      fraction of calls with equal greedy token
    state_rel: largest difference of a state tensor after the last call, relative to its largest magnitude
    """

    calls: int
    max_abs: float
    rel_std: float
    top1: float
    state_rel: float


def read(line: str) -> Told:
    """Parse the line; raises WrongCall."""
    try:
        return from_plain(Told, json.loads(line))
    except (SchemaError, ValueError) as error:
        raise WrongCall(f"this is not what rwkv-step prints: {error}") from error


def read_state(path: Path, specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """The tensors of a --state-out file; raises WrongCall for a file of another size."""
    data, tensors, start = path.read_bytes(), {}, 0
    if len(data) != sum(spec.nbytes for spec in specs):
        raise WrongCall(f"{path} has {len(data)} bytes, the state has {sum(spec.nbytes for spec in specs)}")
    for spec in specs:
        kind = np.dtype(spec.dtype).newbyteorder("<")
        tensors[spec.name] = np.frombuffer(data[start : start + spec.nbytes], kind).reshape(spec.shape)
        start += spec.nbytes
    return tensors


def compare(session: Session, told: Told, logits: Array, state: Mapping[str, Array]) -> Agreement:
    """Feed the session the same ids in the same calls, from its initial state.

    logits: of the --logits file, (calls, vocab); state: of the --state-out file. Raises CheckFailed for logits that
    are not as many as the calls, or not finite.
    """
    if len(logits) != len(told.calls) or not np.isfinite(logits).all():
        raise CheckFailed(f"{len(logits)} rows of logits came back for {len(told.calls)} calls, or some are not finite")
    ids, now, rows = list(told.fed), session.initial_state(), []
    for size in told.calls:
        taken, ids = ids[:size], ids[size:]
        step = session.prefill(taken, now)
        rows.append(step.logits)
        now = step.state
    expected = np.stack(rows)
    worst = float(np.abs(logits - expected).max())
    return Agreement(
        calls=len(rows),
        max_abs=worst,
        rel_std=worst / float(expected.std()),
        top1=float((logits.argmax(1) == expected.argmax(1)).mean()),
        state_rel=max(_relative(state[name], array) for name, array in session.read_state(now).items()),
    )


def _relative(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), FLOOR))
