"""Matrix products and convolution through BLAS; half precision never reaches them: products accumulate in float32.

Functions bear the names, parameters and defaults of MIL's operations (iOS 15 to 18).
"""

# MIL documents its operations: docstrings here say only what is easily mistaken.
# ruff: noqa: D103
# numpy types many of its results as Any.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import numpy as np

from runtimes.contract import Array
from runtimes.mil import products
from runtimes.mil.binding import Arrays, Ints


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    return products.linear(np.matmul, x, weight, bias)


def matmul(x: Array, y: Array, transpose_x: bool = False, transpose_y: bool = False) -> Array:
    return products.matmul(np.matmul, x, y, transpose_x=transpose_x, transpose_y=transpose_y)


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
        np.matmul,
        x,
        weight,
        bias,
        strides=strides,
        pad_type=pad_type,
        pad=pad,
        dilations=dilations,
        groups=groups,
    )


def einsum(values: Arrays, equation: str) -> Array:
    return np.einsum(equation, *values)
