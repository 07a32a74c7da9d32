"""Messages between a session and the process that holds it: a JSON header and raw tensors; it knows no request.

A frame is `RWKA`, the protocol's version and the header's length as little-endian uint32, the header in UTF-8, and then
the bytes of the tensors that the header lists, C order, little-endian, one after another.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from runtimes.contract import Array

MAGIC = b"RWKA"
VERSION = 1
PREFIX = struct.Struct("<4sII")
HEADER_LIMIT = 4 << 20  # bytes
TENSOR_LIMIT = 4 << 30  # bytes of all tensors of a frame
DTYPES = ("float32", "float16", "int64", "int32")


class FrameError(Exception):
    """What was read is no frame; the text says what it is instead."""


class Ended(FrameError):
    """The other side closed its end, between frames or within one."""


@dataclass(frozen=True)
class Frame:
    """One message. header: what JSON can hold; tensors: by name."""

    header: Mapping[str, Any]
    tensors: Mapping[str, Array] = field(default_factory=dict)


def write(stream: BinaryIO, frame: Frame) -> None:
    """Send a frame; raises OSError where nobody reads."""
    tensors = {name: np.ascontiguousarray(array) for name, array in frame.tensors.items()}
    listed = [[name, array.dtype.name, list(array.shape)] for name, array in tensors.items()]
    header = json.dumps({**frame.header, "tensors": listed}).encode()
    stream.write(PREFIX.pack(MAGIC, VERSION, len(header)) + header)
    for array in tensors.values():
        stream.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    stream.flush()


def read(stream: BinaryIO) -> Frame:
    """The next frame; raises Ended where there is none, FrameError for anything else that is not one.

    Nothing is allocated before its size was held against the limits.
    """
    magic, version, length = PREFIX.unpack(_exactly(stream, PREFIX.size))
    if magic != MAGIC:
        raise FrameError(f"expected a message, got {magic!r}")
    if version != VERSION:
        raise FrameError(f"speaks version {version} of the protocol, this is version {VERSION}")
    if length > HEADER_LIMIT:
        raise FrameError(f"header of {length} bytes, more than {HEADER_LIMIT}")
    try:
        header = json.loads(_exactly(stream, length))
        listed = list(_listed(header.pop("tensors")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FrameError(f"header that cannot be read: {error}") from error
    if (total := sum(size for *_, size in listed)) > TENSOR_LIMIT:
        raise FrameError(f"tensors of {total} bytes, more than {TENSOR_LIMIT}")
    return Frame(header, {name: _tensor(stream, dtype, shape, size) for name, dtype, shape, size in listed})


def _listed(entries: Any) -> Iterator[tuple[str, np.dtype[Any], tuple[int, ...], int]]:
    """Name, type, shape and bytes of each tensor; raises ValueError."""
    for name, dtype, shape in entries:
        if dtype not in DTYPES or not all(isinstance(axis, int) and axis >= 0 for axis in shape):
            raise ValueError(f"tensor {name!r} is {dtype!r} of shape {shape!r}")
        kind = np.dtype(dtype)
        yield str(name), kind, tuple(shape), math.prod(shape) * kind.itemsize


def _tensor(stream: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...], size: int) -> Array:
    content = np.frombuffer(_exactly(stream, size), dtype.newbyteorder("<"))
    return content.astype(dtype, copy=False).reshape(shape)


def _exactly(stream: BinaryIO, size: int) -> bytes:
    parts, left = [], size
    while left:
        part = stream.read(min(left, 1 << 20))
        if not part:
            raise Ended(f"closed after {size - left} of {size} bytes")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
