"""Tensor types of MIL and how their elements are packed into bytes; knows neither files nor operations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from runtimes.contract import Array


@dataclass(frozen=True)
class Element:
    """One MIL data type.

    dtype: the numpy type that holds one element, once unpacked
    bits:  size in a file; fewer than 8 are packed, least significant bit first
    code:  the type's number in weight files, None where those cannot hold it
    """

    dtype: str
    bits: int
    code: int | None


# Codes: enum BlobDataType in coremltools, mlmodel/src/MILBlob/Blob/BlobDataType.hpp.
ELEMENTS = {
    "BOOL": Element("bool", 8, None),
    "FLOAT16": Element("float16", 16, 1),
    "FLOAT32": Element("float32", 32, 2),
    "FLOAT64": Element("float64", 64, None),
    "INT4": Element("int8", 4, 8),
    "INT8": Element("int8", 8, 4),
    "INT16": Element("int16", 16, 6),
    "INT32": Element("int32", 32, 14),
    "INT64": Element("int64", 64, None),
    "UINT1": Element("uint8", 1, 9),
    "UINT2": Element("uint8", 2, 10),
    "UINT3": Element("uint8", 3, 12),
    "UINT4": Element("uint8", 4, 11),
    "UINT6": Element("uint8", 6, 13),
    "UINT8": Element("uint8", 8, 3),
    "UINT16": Element("uint16", 16, 7),
    "UINT32": Element("uint32", 32, 15),
    "UINT64": Element("uint64", 64, None),
}


@dataclass(frozen=True)
class TensorType:
    """Element type by MIL name and a fixed shape; text has the element "STRING"."""

    element: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The numpy type of an unpacked tensor."""
        return np.dtype(ELEMENTS[self.element].dtype)

    @property
    def bytes(self) -> int:
        """Packed size."""
        return math.ceil(math.prod(self.shape) * ELEMENTS[self.element].bits / 8)

    def unpack(self, data: Array) -> Array:
        """The tensor in `bytes` uint8 values; a view of them where the elements are whole bytes."""
        bits = ELEMENTS[self.element].bits
        if bits >= 8:
            return data.view(self.dtype).reshape(self.shape)
        values = unpack_bits(data, bits, math.prod(self.shape))
        if self.element == "INT4":
            values = ((values ^ 8) - np.uint8(8)).view(np.int8)  # sign of four bits to that of eight
        return values.reshape(self.shape)

    def __str__(self) -> str:
        return f"{self.element.lower()}{list(self.shape)}"


def differences(
    one: Mapping[str, TensorType], other: Mapping[str, TensorType]
) -> Iterator[tuple[str, TensorType | None, TensorType | None]]:
    """Names in either whose types differ, with both types; None where one lacks the name."""
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            yield name, one.get(name), other.get(name)


def unpack_bits(data: Array, bits: int, count: int) -> Array:
    """`count` unsigned fields of 1, 2, 3, 4, 6 or 8 bits as uint8, the first in the least significant bits."""
    padded = np.zeros(-(-data.size // 3) * 3, np.uint8)
    padded[: data.size] = data
    low, middle, high = padded.reshape(-1, 3).astype(np.uint32).T
    words = low | middle << 8 | high << 16  # 24 bits: a multiple of every size there is
    fields: Array = words[:, None] >> np.arange(0, 24, bits, dtype=np.uint32) & (2**bits - 1)
    return fields.astype(np.uint8).reshape(-1)[:count]
