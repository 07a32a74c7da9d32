"""Operations on one element at a time, with broadcasting; half precision never reaches them, they get float32.

Functions bear the names, parameters and defaults of MIL's operations (iOS 15 to 18).
"""

# MIL documents its operations: docstrings here say only what is easily mistaken.
# ruff: noqa: D103
# numpy types many of its results as Any.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import numpy as np

from runtimes.contract import Array


def add(x: Array, y: Array) -> Array:
    return x + y


def sub(x: Array, y: Array) -> Array:
    return x - y


def mul(x: Array, y: Array) -> Array:
    return x * y


def real_div(x: Array, y: Array) -> Array:
    """Integers divide towards zero."""
    return x / y if x.dtype.kind == "f" else np.trunc(x / y).astype(x.dtype)


def floor_div(x: Array, y: Array) -> Array:
    return np.floor_divide(x, y)


def mod(x: Array, y: Array) -> Array:
    """The remainder has the sign of `y`."""
    return np.mod(x, y)


def pow(x: Array, y: Array) -> Array:
    return np.power(x, y)


def maximum(x: Array, y: Array) -> Array:
    return np.maximum(x, y)


def minimum(x: Array, y: Array) -> Array:
    return np.minimum(x, y)


def equal(x: Array, y: Array) -> Array:
    return np.equal(x, y)


def not_equal(x: Array, y: Array) -> Array:
    return np.not_equal(x, y)


def greater(x: Array, y: Array) -> Array:
    return np.greater(x, y)


def greater_equal(x: Array, y: Array) -> Array:
    return np.greater_equal(x, y)


def less(x: Array, y: Array) -> Array:
    return np.less(x, y)


def less_equal(x: Array, y: Array) -> Array:
    return np.less_equal(x, y)


def logical_and(x: Array, y: Array) -> Array:
    return np.logical_and(x, y)


def logical_or(x: Array, y: Array) -> Array:
    return np.logical_or(x, y)


def logical_xor(x: Array, y: Array) -> Array:
    return np.logical_xor(x, y)


def logical_not(x: Array) -> Array:
    return np.logical_not(x)


def abs(x: Array) -> Array:
    return np.abs(x)


def sign(x: Array) -> Array:
    return np.sign(x)


def floor(x: Array) -> Array:
    return np.floor(x)


def ceil(x: Array) -> Array:
    return np.ceil(x)


def round(x: Array) -> Array:
    """Ties go to the even neighbour."""
    return np.round(x)


def clip(x: Array, alpha: float, beta: float) -> Array:
    return np.minimum(np.maximum(x, alpha), beta)


def threshold(x: Array, alpha: Array) -> Array:
    return np.maximum(x, alpha)


def exp(x: Array) -> Array:
    return np.exp(x)


def exp2(x: Array) -> Array:
    return np.exp2(x).astype(x.dtype)


def log(x: Array, epsilon: float = 1e-45) -> Array:
    return np.log(x + epsilon)


def sqrt(x: Array) -> Array:
    return np.sqrt(x)


def rsqrt(x: Array, epsilon: float = 1e-12) -> Array:
    return 1 / np.sqrt(x + epsilon)


def inverse(x: Array, epsilon: float = 1e-4) -> Array:
    return 1 / (x + epsilon)


def square(x: Array) -> Array:
    return np.square(x)


def sin(x: Array) -> Array:
    return np.sin(x)


def cos(x: Array) -> Array:
    return np.cos(x)


def tanh(x: Array) -> Array:
    return np.tanh(x)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def softplus(x: Array) -> Array:
    return np.logaddexp(np.zeros_like(x), x)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def relu6(x: Array) -> Array:
    return np.minimum(np.maximum(x, 0), 6)


def leaky_relu(x: Array, alpha: float) -> Array:
    return np.where(x >= 0, x, alpha * x)
