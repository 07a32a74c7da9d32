"""Reductions and running sums over axes; half precision never reaches them, they get float32.

Functions bear the names, parameters and defaults of MIL's operations (iOS 15 to 18).
"""

# MIL documents its operations: docstrings here say only what is easily mistaken.
# ruff: noqa: D103
# numpy types many of its results as Any.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import numpy as np

from runtimes.contract import Array
from runtimes.mil.binding import Ints


def reduce_sum(x: Array, axes: Ints | None = None, keep_dims: bool = False) -> Array:
    return np.sum(x, axis=axes, keepdims=keep_dims, dtype=x.dtype)


def reduce_mean(x: Array, axes: Ints | None = None, keep_dims: bool = False) -> Array:
    return np.mean(x, axis=axes, keepdims=keep_dims).astype(x.dtype)


def reduce_max(x: Array, axes: Ints | None = None, keep_dims: bool = False) -> Array:
    return np.max(x, axis=axes, keepdims=keep_dims)


def reduce_min(x: Array, axes: Ints | None = None, keep_dims: bool = False) -> Array:
    return np.min(x, axis=axes, keepdims=keep_dims)


def reduce_prod(x: Array, axes: Ints | None = None, keep_dims: bool = False) -> Array:
    return np.prod(x, axis=axes, keepdims=keep_dims, dtype=x.dtype)


def reduce_sum_square(x: Array, axes: Ints | None = None, keep_dims: bool = False) -> Array:
    return reduce_sum(np.square(x), axes, keep_dims)


def reduce_l1_norm(x: Array, axes: Ints | None = None, keep_dims: bool = False) -> Array:
    return reduce_sum(np.abs(x), axes, keep_dims)


def reduce_l2_norm(x: Array, axes: Ints | None = None, keep_dims: bool = False) -> Array:
    return np.sqrt(reduce_sum_square(x, axes, keep_dims)).astype(x.dtype)


def reduce_log_sum(x: Array, axes: Ints | None = None, keep_dims: bool = False) -> Array:
    return np.log(reduce_sum(x, axes, keep_dims)).astype(x.dtype)


def reduce_log_sum_exp(x: Array, axes: Ints | None = None, keep_dims: bool = False) -> Array:
    largest = np.max(x, axis=axes, keepdims=True)
    total = np.log(np.sum(np.exp(x - largest), axis=axes, keepdims=True)) + largest
    return total if keep_dims else np.squeeze(total, axis=axes)


def reduce_argmax(x: Array, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Array:
    return np.argmax(x, axis=axis, keepdims=keep_dims).astype(output_dtype)


def reduce_argmin(x: Array, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Array:
    return np.argmin(x, axis=axis, keepdims=keep_dims).astype(output_dtype)


def cumsum(x: Array, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Array:
    """`exclusive` starts from zero and leaves out the last element."""
    ordered = np.flip(x, axis) if reverse else x
    total = np.cumsum(ordered, axis=axis, dtype=x.dtype)
    if exclusive:
        total = total - ordered
    return np.flip(total, axis) if reverse else total
