"""Golden traces as safetensors files: written whole, read with numpy alone and distrustfully; records nothing.

One metadata entry, "rwkv-export-trace": the SHA-256 of the JSON text that follows it in the same string, of About.

tokens (T,) int32
logits.whole (W, vocab) float32:      of the steps in `whole`
logits.ids (T - W, K) int32, logits.likeliest (T - W, K) float32, logits.rest (T - W, 2) float64:
                                      of the others; the last is log of the sum of all exponentials, and their spread
start.NAME float32:                   state before the first token; one value where all are the same
state.NAME (P, *shape) float32:       at the positions in `positions`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from runtimes import manifest
from runtimes.contract import Array
from runtimes.errors import WrongCall
from runtimes.files import write_bytes_atomically
from runtimes.schema import SchemaError, from_plain, to_plain
from validation.trace import FEWEST, Likeliest, Logits, Trace

SCHEMA = 1
KEY = "rwkv-export-trace"
LONGEST_HEADER = 1 << 22
"""Bytes. A model of 128 layers has some 900 entries of 150 bytes; a larger header is no trace of ours."""
MOST_TOKENS = 1 << 20
AGAIN = "record it again with `rwkv-export trace`, or copy it again"


@dataclass(frozen=True)
class About:
    """What a file says of itself.

    source:     the checkpoint, by its hash; ln_x_eps: its group norm's epsilon
    text:       name of the text's file, "" for ids drawn at random with `seed`; bytes: what its tokens 1 to T spell
    whole:      steps whose logits are all there; positions: those of the states beside 0
    tensors:    name -> SHA-256 of type, shape and values
    """

    schema: int
    model: str
    version: str
    vocab: int
    ln_x_eps: float
    source: manifest.Source
    text: str
    bytes: int
    seed: int
    whole: tuple[int, ...]
    positions: tuple[int, ...]
    tensors: Mapping[str, str]
    tools: Mapping[str, str]


def write(trace: Trace, about: About, path: Path) -> None:
    """Write a trace; `whole`, `positions` and `tensors` of `about` are filled in. The same trace gives the same bytes.

    Raises OSError.
    """
    whole = tuple(step for step, logits in enumerate(trace.logits) if not isinstance(logits, Likeliest))
    tensors = _tensors(trace)
    hashes = {name: _digest(array) for name, array in sorted(tensors.items())}
    facts = {"whole": whole, "positions": tuple(sorted(trace.states))[1:], "tensors": hashes}
    text = json.dumps(to_plain({**vars(about), **facts}), sort_keys=True)
    write_bytes_atomically(path, save(tensors, {KEY: hashlib.sha256(text.encode()).hexdigest() + text}))


def read(path: Path) -> tuple[Trace, About]:
    """Read a trace and check every hash; raises WrongCall naming the file and what is wrong with it."""
    try:
        _check_header(path)
        with safe_open(path, framework="numpy") as file:
            about = _about((file.metadata() or {}).get(KEY))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        if set(tensors) != set(about.tensors):
            raise SchemaError(f"its tensors are not those it names: {sorted(set(tensors) ^ set(about.tensors))[:3]}")
        for name, array in tensors.items():
            if _digest(array) != about.tensors[name]:
                raise SchemaError(f"{name} does not match its SHA-256")
        return _trace(tensors, about, path.name), about
    except OSError as error:
        raise WrongCall(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, SchemaError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise WrongCall(f"{path} is not a golden trace, or damaged: {error}", hint=AGAIN) from error


def _tensors(trace: Trace) -> dict[str, Array]:
    found: dict[str, Array] = {"tokens": np.array(trace.tokens, np.int32)}
    whole = [logits for logits in trace.logits if not isinstance(logits, Likeliest)]
    parts = [logits for logits in trace.logits if isinstance(logits, Likeliest)]
    if whole:
        found["logits.whole"] = np.stack(whole)
    if parts:
        found["logits.ids"] = np.stack([part.ids for part in parts]).astype(np.int32)
        found["logits.likeliest"] = np.stack([part.logits for part in parts])
        found["logits.rest"] = np.array([(part.logsumexp, part.spread) for part in parts], np.float64)
    start, *others = (trace.states[position] for position in sorted(trace.states))
    for name, array in start.items():
        value = np.asarray(array, np.float32)
        found[f"start.{name}"] = value if np.ptp(value) else value.flat[:1].reshape((1,) * value.ndim)
        found[f"state.{name}"] = np.stack([np.asarray(state[name], np.float32) for state in others])
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def _digest(array: Array) -> str:
    return hashlib.sha256(f"{array.dtype.name} {array.shape}\n".encode() + array.tobytes()).hexdigest()


def _check_header(path: Path) -> None:
    """Before a library reads it: a regular file whose header is no longer than a trace's can be."""
    if not path.is_file():
        raise WrongCall(f"{path} is no file", hint="make one with `rwkv-export trace`")
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > LONGEST_HEADER:
        raise SchemaError(f"its header would be {length} bytes long, {LONGEST_HEADER} is the most for a trace")


def _about(text: str | None) -> About:
    if text is None:
        raise SchemaError(f"it has no {KEY} entry")
    digest, text = text[:64], text[64:]
    document = json.loads(text)
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise SchemaError(f"schema is {schema!r}, this version reads {SCHEMA}")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise SchemaError("what it says of itself does not match its SHA-256")
    about = from_plain(About, document)
    for name in (about.model, about.text, about.source.file):
        if "/" in name or "\\" in name or not name.isprintable():
            raise SchemaError(f"{name!r} is not the name of a file")
    return about


def _trace(tensors: Mapping[str, Array], about: About, name: str) -> Trace:
    """The tensors as a trace, their shapes, types and ranges checked."""
    tokens = _checked(tensors, "tokens", np.int32, 1)
    steps = len(tokens)
    if not FEWEST <= steps <= MOST_TOKENS or tokens.min() < 0 or tokens.max() >= about.vocab:
        raise SchemaError(f"{steps} tokens of {tokens.min(initial=0)} to {tokens.max(initial=0)} cannot be a trace's")
    _increasing("whole", about.whole, range(steps))
    _increasing("positions", about.positions, range(1, steps + 1))
    states = _states(tensors, about.positions)
    trace = Trace(tuple(tokens.tolist()), _logits(tensors, about, steps), states, name)
    if not trace.kept or steps not in states:
        raise SchemaError("it has no step with the states before and after, or not the last state")
    return trace


def _logits(tensors: Mapping[str, Array], about: About, steps: int) -> tuple[Logits, ...]:
    found: dict[int, Logits] = {}
    if about.whole:
        rows = _checked(tensors, "logits.whole", np.float32, 2, (len(about.whole), about.vocab))
        found.update(zip(about.whole, rows, strict=True))
    if others := [step for step in range(steps) if step not in found]:
        ids = _checked(tensors, "logits.ids", np.int32, 2)
        values = _checked(tensors, "logits.likeliest", np.float32, 2, (len(others), ids.shape[1]))
        rest = _checked(tensors, "logits.rest", np.float64, 2, (len(others), 2))
        if ids.shape[0] != len(others) or ids.shape[1] < 2 or ids.min() < 0 or ids.max() >= about.vocab:
            raise SchemaError("logits.ids are not ids of this vocabulary for every step")
        if not np.isfinite(rest).all():
            raise SchemaError("logits.rest holds NaN or infinite values")
        for row, step in enumerate(others):
            total, spread = rest[row].tolist()
            found[step] = Likeliest(ids[row].astype(np.int64), values[row], total, spread, about.vocab)
    return tuple(found[step] for step in range(steps))


def _states(tensors: Mapping[str, Array], positions: tuple[int, ...]) -> dict[int, dict[str, Array]]:
    names = [name.removeprefix("state.") for name in tensors if name.startswith("state.")]
    states: dict[int, dict[str, Array]] = {position: {} for position in (0, *positions)}
    for name in names:
        rows = _checked(tensors, f"state.{name}", np.float32)
        if rows.ndim < 2 or len(rows) != len(positions):
            raise SchemaError(f"state.{name} has shape {rows.shape} for {len(positions)} positions")
        start = _checked(tensors, f"start.{name}", np.float32, rows.ndim - 1)
        states[0][name] = np.array(np.broadcast_to(start, rows.shape[1:]))
        for position, row in zip(positions, rows, strict=True):
            states[position][name] = row
    return states


def _checked(
    tensors: Mapping[str, Array], name: str, dtype: type, rank: int | None = None, shape: tuple[int, ...] | None = None
) -> Array:
    array = tensors.get(name)
    if array is None:
        raise SchemaError(f"{name} is missing")
    if array.dtype != dtype or rank not in (None, array.ndim) or shape not in (None, array.shape):
        raise SchemaError(f"{name} is {array.dtype} of shape {array.shape}, which does not fit")
    return array


def _increasing(what: str, values: tuple[int, ...], within: range) -> None:
    """Different numbers of a range in rising order."""
    if list(values) != sorted(set(values)) or any(value not in within for value in values):
        raise SchemaError(f"{what} are not rising numbers from {within.start} to {within.stop - 1}")
