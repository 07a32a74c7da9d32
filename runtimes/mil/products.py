"""Linear, matmul and conv as matrix products of rows and columns; how a product is summed is the caller's choice."""

# numpy types many of its results as Any.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from runtimes.contract import Array
from runtimes.mil.binding import Ints

Product = Callable[[Array, Array], Array]
"""(..., n, K), (..., K, m) -> (..., n, m), leading axes broadcast."""


def linear(product: Product, x: Array, weight: Array, bias: Array | None) -> Array:
    """`x` (*, in), `weight` (out, in), `bias` (out,)."""
    flat = product(x.reshape(-1, x.shape[-1]), weight.T)
    if bias is not None:
        flat += bias
    return flat.reshape(*x.shape[:-1], len(weight))


def matmul(product: Product, x: Array, y: Array, *, transpose_x: bool, transpose_y: bool) -> Array:
    """A vector cannot be transposed; it is a row on the left and a column on the right."""
    if transpose_x and x.ndim > 1:
        x = np.swapaxes(x, -1, -2)
    if transpose_y and y.ndim > 1:
        y = np.swapaxes(y, -1, -2)
    made = product(x[None] if x.ndim == 1 else x, y[:, None] if y.ndim == 1 else y)
    made = made[..., 0] if y.ndim == 1 else made
    return made if x.ndim > 1 else made[..., 0] if y.ndim == 1 else made[..., 0, :]


def conv(
    product: Product,
    x: Array,
    weight: Array,
    bias: Array | None,
    *,
    strides: Ints | None,
    pad_type: str,
    pad: Ints | None,
    dilations: Ints | None,
    groups: int,
) -> Array:
    """`x` (batch, in, *space), `weight` (out, in / groups, *kernel): a product over unfolded windows."""
    outer, kernel = len(weight), weight.shape[2:]
    strides, dilations = strides or (1,) * len(kernel), dilations or (1,) * len(kernel)
    span = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    x = np.pad(x, [(0, 0), (0, 0), *_padding(pad_type, pad, x.shape[2:], span, strides)])
    axes: Any = tuple(range(2, x.ndim))
    windows = sliding_window_view(x, span, axes)  # (batch, in, *positions, *span)
    windows = windows[:, :, *_every(strides), *_every(dilations)]
    batch, channels, *space = windows.shape[: x.ndim]
    windows = windows.reshape(batch, groups, channels // groups, math.prod(space), math.prod(kernel))
    rows = windows.transpose(0, 1, 3, 2, 4).reshape(batch, groups, math.prod(space), -1)
    columns = weight.reshape(groups, outer // groups, -1).swapaxes(1, 2)
    result = product(rows, columns).swapaxes(2, 3).reshape(batch, outer, *space)
    return result if bias is None else result + bias.reshape(-1, *[1] * len(kernel))


def _every(steps: Ints) -> list[slice]:
    return [slice(None, None, step) for step in steps]


def _padding(pad_type: str, pad: Ints | None, space: Ints, span: list[int], strides: Ints) -> list[tuple[int, int]]:
    if pad_type == "valid":
        return [(0, 0)] * len(space)
    if pad_type == "custom" and pad is not None:
        return list(zip(pad[::2], pad[1::2], strict=True))
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"pad_type {pad_type!r} is unknown")
    pairs = []
    for size, reach, stride in zip(space, span, strides, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + reach - size)
        less, more = total // 2, total - total // 2
        pairs.append((less, more) if pad_type == "same" else (more, less))
    return pairs
