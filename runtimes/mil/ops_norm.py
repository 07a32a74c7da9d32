"""Normalisations; half precision never reaches them: statistics are float32 and only the result is rounded.

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


def layer_norm(
    x: Array, axes: Ints | None = None, gamma: Array | None = None, beta: Array | None = None, epsilon: float = 1e-5
) -> Array:
    """`gamma` and `beta` have the shape of the normalised axes."""
    normalised = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes]
    shape = [size if axis in normalised else 1 for axis, size in enumerate(x.shape)]
    return _affine(_standardise(x, tuple(normalised), epsilon), gamma, beta, shape)


def instance_norm(x: Array, gamma: Array | None = None, beta: Array | None = None, epsilon: float = 1e-5) -> Array:
    """`x` is (batch, channel, *spatial); every channel is normalised over its spatial axes."""
    return _affine(_standardise(x, tuple(range(2, x.ndim)), epsilon), gamma, beta, _channels(x))


def batch_norm(
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: float = 1e-5,
) -> Array:
    """`x` is (batch, channel, *spatial), the rest (channel,)."""
    shape = _channels(x)
    scaled = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + epsilon)
    return _affine(scaled, gamma, beta, shape)


def l2_norm(x: Array, epsilon: float = 1e-6) -> Array:
    """Over the last three axes together."""
    return x / np.sqrt(np.sum(np.square(x), axis=(-3, -2, -1), keepdims=True) + epsilon)


def softmax(x: Array, axis: int = -1) -> Array:
    exponentials = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return exponentials / np.sum(exponentials, axis=axis, keepdims=True)


def _standardise(x: Array, axes: Ints, epsilon: float) -> Array:
    centred = x - np.mean(x, axis=axes, keepdims=True)
    return centred / np.sqrt(np.mean(np.square(centred), axis=axes, keepdims=True) + epsilon)


def _affine(x: Array, gamma: Array | None, beta: Array | None, shape: list[int]) -> Array:
    if gamma is not None:
        x = x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


def _channels(x: Array) -> list[int]:
    return [1, x.shape[1], *[1] * (x.ndim - 2)]
