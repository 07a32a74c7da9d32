"""Rounds float matrices to 8 or 4 bits in the layouts that ONNX Runtime's operators read; it knows no graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits

from runtimes.contract import Array

ROWS = 1024  # rows of a matrix that are rounded at once

Tensors = Mapping[str, Array]
Described = Mapping[str, tuple[type[np.generic], tuple[int, ...]]]
"""Type and shape of each of the tensors that stand for a matrix, by what it holds."""


class Storage(Protocol):
    """How a matrix is stored, and the operator of ONNX Runtime's `com.microsoft` domain that reads it.

    Matrices come as (N, K): N outputs, or rows of a table, of K values.
    """

    operator: str

    def attributes(self, n: int, k: int) -> Mapping[str, int]:
        """The operator's, for a matrix of this shape."""

    def tensors(self, n: int, k: int) -> Described:
        """What `round` gives."""

    def round(self, matrix: Array) -> Tensors:
        """The tensors that stand for a float32 matrix."""


@dataclass(frozen=True)
class Channels:
    """Eight bits and a scale for each output; the operator rounds activations too, to 8 bits with a scale a call."""

    operator = "DynamicQuantizeMatMul"

    def attributes(self, n: int, k: int) -> Mapping[str, int]:
        """None."""
        return {}

    def tensors(self, n: int, k: int) -> Described:
        """Values as (K, N), in [-127, 127]."""
        return {"int8": (np.int8, (k, n)), "scales": (np.float32, (n,))}

    def round(self, matrix: Array) -> Tensors:
        """To nearest, the largest magnitude of an output becoming 127."""
        made = _empty(self.tensors(*matrix.shape))
        for some in _parts(len(matrix)):
            scales = np.abs(matrix[some]).max(1) / np.float32(127)
            made["scales"][some] = scales
            scales[scales == 0] = 1  # values of an output of zeros are zeros at any scale
            made["int8"][:, some] = np.rint(matrix[some] / scales[:, None]).T
        return made


@dataclass(frozen=True)
class Blocks:
    """`bits` (8 or 4) and a scale for each `block` (16, 32, 64, 128 or 256) inputs of an output.

    Four bits have a zero point a block too. The operator rounds activations to 8 bits with a scale a block.
    """

    bits: int
    block: int
    operator = "MatMulNBits"

    def attributes(self, n: int, k: int) -> Mapping[str, int]:
        """Accuracy level 4: arithmetic in integers."""
        return {"K": k, "N": n, "bits": self.bits, "block_size": self.block, "accuracy_level": 4}

    def tensors(self, n: int, k: int) -> Described:
        """Values as (N, blocks, bytes), the last block filled up; the zero points of two blocks share a byte."""
        blocks = -(-k // self.block)
        shapes: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
            f"int{self.bits}": (np.uint8, (n, blocks, self.block * self.bits // 8)),
            "scales": (np.float32, (n, blocks)),
        }
        if self.bits == 4:
            shapes["zeros"] = (np.uint8, (n, -(-blocks // 2)))
        return shapes

    def round(self, matrix: Array) -> Tensors:
        """With ONNX Runtime's quantiser: a block's range becomes 0 to 15, or -128 to 127 by its largest magnitude."""
        n, k = matrix.shape
        made = _empty(self.tensors(n, k))
        values, scales = made[f"int{self.bits}"], made["scales"]
        zeros = made.get("zeros", np.empty((n, scales.shape[1]), np.uint8))
        filled = scales.shape[1] * self.block
        quantise = quantize_matmul_4bits if self.bits == 4 else quantize_matmul_8bits
        for some in _parts(n):
            columns = np.zeros((filled, len(matrix[some])), np.float32)
            columns[:k] = matrix[some].T
            sizes = self.block, columns.shape[1], filled
            quantise(values[some], columns, scales[some], zeros[some], *sizes, self.bits == 8)
        return made


@dataclass(frozen=True)
class Rows:
    """A table whose rows are looked up, stored like `Blocks`; K * bits must be whole bytes.

    For an id outside the table the operator gives zeros and no error: who calls the graph checks ids.
    """

    bits: int
    block: int
    operator = "GatherBlockQuantized"

    def attributes(self, n: int, k: int) -> Mapping[str, int]:
        """Rows are gathered, and quantised along themselves."""
        return {"bits": self.bits, "block_size": self.block, "gather_axis": 0, "quantize_axis": 1}

    def tensors(self, n: int, k: int) -> Described:
        """Values as (N, bytes of K values)."""
        return {**self._blocks().tensors(n, k), f"int{self.bits}": (np.uint8, (n, k * self.bits // 8))}

    def round(self, matrix: Array) -> Tensors:
        """As `Blocks`, what fills the last block cut off."""
        n, k = matrix.shape
        made, values = dict(self._blocks().round(matrix)), f"int{self.bits}"
        made[values] = np.ascontiguousarray(made[values].reshape(n, -1)[:, : k * self.bits // 8])
        return made

    def _blocks(self) -> Blocks:
        return Blocks(self.bits, self.block)


class Latest:
    """Makes the tensors of one matrix together and keeps those not yet taken, until another matrix's are wanted."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._left: dict[str, Array] = {}

    def take(self, key: str, name: str, make: Callable[[], Tensors]) -> Array:
        """The tensor `name` of what `make` makes for `key`."""
        if self._key != key or name not in self._left:
            self._key, self._left = key, {}  # the memory is free before it is needed
            self._left = dict(make())
        return self._left.pop(name)


def _empty(described: Described) -> dict[str, Any]:
    return {name: np.empty(shape, dtype) for name, (dtype, shape) in described.items()}


def _parts(rows: int) -> Iterator[slice]:
    return (slice(start, start + ROWS) for start in range(0, rows, ROWS))
