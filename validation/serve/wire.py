"""What page and server say to each other: frames of a JSON header and raw tensors; it knows no HTTP and no verdicts."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from runtimes.contract import Array, TensorSpec
from runtimes.errors import RwkvExportError
from runtimes.schema import SchemaError, from_plain

LENGTH = struct.Struct("<I")
MOST_HEADER = 1 << 16
"""Bytes of a header that a page may send."""
LOGITS = ("float32", "float16")
LONGEST = 3600.0
"""Seconds of one call that are believed."""
MOST_TEXT = 400
"""Characters of a text from outside that are kept."""


@dataclass(frozen=True)
class Opened:
    """What the page tells of the graphs it loaded.

    threads: of the wasm module
    nodes:   nodes per execution provider, from ONNX Runtime's own log
    devices: those that the browser tells of a WebNN graph, empty where it does not
    """

    threads: int
    nodes: Mapping[str, int]
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """The header of what a page sends after a command.

    seq:     of the command
    error:   what the browser said where it failed
    seconds: one a call
    logits:  type of the logits in the blob, empty where there are none
    """

    seq: int
    error: str | None = None
    seconds: tuple[float, ...] = ()
    logits: str = ""
    opened: Opened | None = None
    blob: bytes = field(default=b"", compare=False)


def pack(header: Mapping[str, Any], blob: bytes = b"") -> bytes:
    """One frame: the header's length as four bytes, little-endian, the header, the blob."""
    text = json.dumps(header, allow_nan=False).encode()
    return LENGTH.pack(len(text)) + text + blob


def unpack(frame: bytes) -> Answer:
    """A page's frame, checked; raises SchemaError for anything that is none, or whose times cannot be."""
    if len(frame) < LENGTH.size:
        raise SchemaError(f"a frame of {len(frame)} bytes has no header")
    (length,) = LENGTH.unpack_from(frame)
    if length > MOST_HEADER or length > len(frame) - LENGTH.size:
        raise SchemaError(f"a header of {length} bytes in a frame of {len(frame)}")
    body = LENGTH.size + length
    header = parse(frame[LENGTH.size : body])
    if "blob" in header:
        raise SchemaError("unknown key blob")
    answer = from_plain(Answer, header | {"blob": frame[body:]})
    if not all(math.isfinite(each) and 0 <= each <= LONGEST for each in answer.seconds):
        raise SchemaError("seconds must be finite and not negative")
    if answer.opened and min([0, answer.opened.threads, *answer.opened.nodes.values()]) < 0:
        raise SchemaError("counts must not be negative")
    return answer


def parse(text: bytes) -> dict[str, Any]:
    """A JSON object without NaN and infinities; raises SchemaError."""
    try:
        document = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise SchemaError("not a JSON object")
    return document


def logits(answer: Answer, vocab: int) -> Array:
    """The logits (vocab,), float32; raises RwkvExportError where the answer has no such array."""
    if answer.logits not in LOGITS:
        raise RwkvExportError(f"the page sent logits of type {plain(answer.logits)!r}")
    return _sized(answer.blob, vocab, np.dtype(answer.logits), "logits").astype(np.float32)


def tensors(blob: bytes, specs: Sequence[TensorSpec]) -> tuple[Array, ...]:
    """State tensors one after another, as `specs` have them; raises RwkvExportError for any other number of bytes."""
    wanted = sum(spec.nbytes for spec in specs)
    if len(blob) != wanted:
        raise RwkvExportError(f"the page sent {len(blob)} bytes of state, expected {wanted}")
    found, start = [], 0
    for spec in specs:
        count = math.prod(spec.shape)
        found.append(np.frombuffer(blob, spec.dtype, count, start).reshape(spec.shape))
        start += spec.nbytes
    return tuple(found)


def plain(text: str) -> str:
    """A text from outside, short and without what could steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:MOST_TEXT]).strip()


def _sized(blob: bytes, count: int, dtype: np.dtype[Any], what: str) -> Array:
    if len(blob) != count * dtype.itemsize:
        raise RwkvExportError(f"the page sent {len(blob)} bytes of {what}, expected {count * dtype.itemsize}")
    return np.frombuffer(blob, dtype)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
