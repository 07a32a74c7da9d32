"""Rounds matrices to 4 bits by what that costs on a text: inputs yet to be rounded make up for those that were.

GPTQ, see gptq.py; scales and layouts are those of `Blocks`, and it knows no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from exporter.passes.gptq import shares
from exporter.passes.onnx_rounding import ROWS, Blocks, Described, Tensors
from runtimes.contract import Array


@dataclass(frozen=True)
class Compensated:
    """As `blocks` of 4 bits, each given its scales once what the blocks before it lost has been added to it.

    moment: X^T X of the inputs X (n, K) of the product, (K, K), on any scale
    """

    blocks: Blocks
    moment: Callable[[], Array]
    operator = Blocks.operator

    def attributes(self, n: int, k: int) -> Mapping[str, int]:
        """Those of `blocks`."""
        return self.blocks.attributes(n, k)

    def tensors(self, n: int, k: int) -> Described:
        """Those of `blocks`."""
        return self.blocks.tensors(n, k)

    def round(self, matrix: Array) -> Tensors:
        """What adds least to the squared error of the product, one input after the other."""
        weights = shares(self.moment())
        parts = [self._rows(matrix[start : start + ROWS], weights) for start in range(0, len(matrix), ROWS)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _rows(self, matrix: Array, weights: Array) -> Tensors:
        left, size = matrix.T.copy(), self.blocks.block  # (K, N)
        made: dict[str, list[Array]] = {name: [] for name in self.tensors(*matrix.shape)}
        for start in range(0, len(left), size):
            some, later = slice(start, start + size), slice(start + size, None)
            plain = self.blocks.round(left[some].T)
            values, errors = _block(left[some], plain, weights[some, some])
            left[later] -= weights[some, later].T @ errors
            for name, tensor in {**plain, "int4": _packed(values)[:, None]}.items():
                made[name].append(tensor)
        joined = {name: np.concatenate(tensors, 1) for name, tensors in made.items()}
        return joined | ({"zeros": _packed(joined["zeros"] & 15)} if "zeros" in joined else {})


def _block(left: Array, plain: Tensors, weights: Array) -> tuple[Array, Array]:
    """Values (N, block) of `left` (k, N) on the scales of `plain`; each input's error over its own weight (k, N)."""
    scales = plain["scales"][:, 0]
    steps = np.where(scales == 0, np.float32(1), scales)
    zeros = (plain["zeros"][:, 0] & 15).astype(np.float32) if "zeros" in plain else np.float32(8)
    values, errors = _unpacked(plain["int4"][:, 0]), np.empty_like(left)
    for i, weight in enumerate(left):
        values[:, i] = np.clip(np.rint(weight / steps) + zeros, 0, 15)
        errors[i] = (weight - (values[:, i] - zeros) * scales) / weights[i, i]
        left[i + 1 :] -= weights[i, i + 1 :, None] * errors[i]
    return values, errors


def _unpacked(pairs: Array) -> Array:
    """(N, bytes) -> (N, 2 bytes), the lower halves first."""
    return np.stack([pairs & 15, pairs >> 4], -1).reshape(len(pairs), -1)


def _packed(values: Array) -> Array:
    """(N, any) -> (N, half of it, rounded up)."""
    even = np.pad(values, ((0, 0), (0, values.shape[1] % 2)))
    packed: Array = even[:, ::2] | even[:, 1::2] << 4
    return packed
