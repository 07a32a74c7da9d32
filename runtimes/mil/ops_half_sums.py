"""Matrix products and convolution whose sums are float16 from the first addend to the last, one after another.

The pessimistic machine: no sum has a longer chain of roundings, where hardware adds in trees or in wider registers. It
is no proven bound: another order can by chance be further off. Einsum stays as it is.
"""

# MIL documents its operations: docstrings here say only what is easily mistaken.
# ruff: noqa: D103

from __future__ import annotations

import numpy as np

from runtimes.contract import Array
from runtimes.mil import products
from runtimes.mil.binding import Ints


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    return products.linear(_summed, x, weight, bias)


def matmul(x: Array, y: Array, transpose_x: bool = False, transpose_y: bool = False) -> Array:
    return products.matmul(_summed, x, y, transpose_x=transpose_x, transpose_y=transpose_y)


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Array:
    return products.conv(
        _summed,
        x,
        weight,
        bias,
        strides=strides,
        pad_type=pad_type,
        pad=pad,
        dilations=dilations,
        groups=groups,
    )


def _summed(rows: Array, columns: Array) -> Array:
    """Both hold float16 values as float32, in which their products are exact; each sum is rounded before the next."""
    leading = np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    total = np.zeros((*leading, rows.shape[-2], columns.shape[-1]), np.float32)
    columns = np.ascontiguousarray(columns)
    for index in range(rows.shape[-1]):
        total += rows[..., :, index, None] * columns[..., index, None, :]
        total = total.astype(np.float16).astype(np.float32)
    return total
