"""Numbers to integers of eight bits and back, while a program runs; what is computed is float32.

Functions bear the names and parameters of MIL's operations (iOS 17).
"""

# MIL documents its operations: docstrings here say only what is easily mistaken.
# ruff: noqa: D103

from __future__ import annotations

import numpy as np

from runtimes.contract import Array


def quantize(
    input: Array, scale: Array, output_dtype: str, zero_point: Array | None = None, axis: int | None = None
) -> Array:
    """Halves go to the even integer, before the zero point is added."""
    if output_dtype not in ("int8", "uint8"):
        raise ValueError(f"output_dtype {output_dtype!r} is unknown")
    limits = np.iinfo(output_dtype)
    steps = np.around(input / _along(scale, input, axis))
    if zero_point is not None:
        steps = steps + _along(zero_point, input, axis).astype(np.float32)
    return np.clip(steps, limits.min, limits.max).astype(output_dtype)


def dequantize(input: Array, scale: Array, zero_point: Array | None = None, axis: int | None = None) -> Array:
    steps = input.astype(np.float32)
    if zero_point is not None:
        steps = steps - _along(zero_point, input, axis).astype(np.float32)
    values: Array = steps * _along(scale, input, axis)
    return values


def _along(values: Array, like: Array, axis: int | None) -> Array:
    """A scalar, or one value for each element of an axis."""
    if axis is None:
        return values
    shape = [1] * like.ndim
    shape[axis] = -1
    return values.reshape(shape)
