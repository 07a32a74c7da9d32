"""Reads weight.bin, Core ML's file of constants: where each begins and whether it is what the program says."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from runtimes.contract import Array
from runtimes.errors import BadArtifact
from runtimes.mil.types import ELEMENTS, TensorType

# Layout: coremltools, mlmodel/src/MILBlob/Blob/StorageFormat.hpp. The header and every record take 64 bytes.
_HEADER = struct.Struct("<II")  # number of records, version
_RECORD = struct.Struct("<IIQQQ")  # sentinel, element code, bytes, data offset, unused bits at the end
_SIZE = 64
_VERSION = 2
_SENTINEL = 0xDEADBEEF


class WeightFile:
    """One weight file, mapped: reading a tensor of whole bytes copies nothing. Raises BadArtifact."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise BadArtifact(f"{path} is missing", hint="copy the whole .mlpackage folder")
        self._path = path
        if path.stat().st_size < _SIZE:
            raise self._bad("is shorter than its header")
        self._bytes = np.memmap(path, np.uint8, "r").view(np.ndarray)
        _, version = _HEADER.unpack(self._bytes[: _HEADER.size].tobytes())
        if version != _VERSION:
            raise self._bad(f"has storage version {version}, expected {_VERSION}")

    def read(self, offset: int, expected: TensorType) -> Array:
        """The tensor whose record begins at `offset`, of the expected type, read-only."""
        end = len(self._bytes)
        if not _SIZE <= offset <= end - _SIZE:
            raise self._bad(f"has no record at offset {offset}: it has {end} bytes")
        sentinel, code, size, start, unused = _RECORD.unpack(self._bytes[offset : offset + _RECORD.size].tobytes())
        if sentinel != _SENTINEL:
            raise self._bad(f"has no record at offset {offset}: it begins with {sentinel:#x}")
        element = ELEMENTS[expected.element]
        if code != element.code:
            raise self._bad(f"holds element code {code} at offset {offset}, the program says {expected}")
        spare = unused if element.bits < 8 else 0
        if size != expected.bytes or size * 8 - spare != _bits(expected):
            raise self._bad(f"holds {size} bytes at offset {offset}, the program says {expected}")
        if not offset + _SIZE <= start <= end - size:
            raise self._bad(f"ends at {end}, within the data of offset {offset}")
        return expected.unpack(self._bytes[start : start + size])

    def _bad(self, reason: str) -> BadArtifact:
        return BadArtifact(f"{self._path} {reason}", hint="export the model again")


def _bits(expected: TensorType) -> int:
    return int(np.prod(expected.shape)) * ELEMENTS[expected.element].bits
