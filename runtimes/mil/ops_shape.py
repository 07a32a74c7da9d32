"""Operations that move or make elements without arithmetic; they see every type as it is, half precision included.

Functions bear the names, parameters and defaults of MIL's operations (iOS 15 to 18).
"""

# MIL documents its operations: docstrings here say only what is easily mistaken.
# ruff: noqa: D103
# numpy types many of its results as Any.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import numpy as np

from runtimes.contract import Array
from runtimes.mil.binding import Arrays, Bools, Ints

_CAST = {"fp16": "float16", "fp32": "float32", "fp64": "float64"}


def identity(x: Array) -> Array:
    return x


def cast(x: Array, dtype: str) -> Array:
    """Floats become integers by dropping the fraction; integers that do not fit wrap around."""
    return x.astype(_CAST.get(dtype, dtype))


def select(cond: Array, a: Array, b: Array) -> Array:
    return np.where(cond, a, b)


def shape(x: Array) -> Array:
    return np.array(x.shape, np.int32)


def reshape(x: Array, shape: Ints) -> Array:
    """A size of 0 is that of `x` at the same place, counted from the right; -1 is what remains."""
    sizes = list(shape)
    for back in range(1, len(sizes) + 1):
        if sizes[-back] == 0:
            sizes[-back] = x.shape[-back] if back <= x.ndim else 1
    return x.reshape(sizes)


def expand_dims(x: Array, axes: Ints) -> Array:
    """Axes count in the result."""
    return np.expand_dims(x, axes)


def squeeze(x: Array, axes: Ints | None = None) -> Array:
    return np.squeeze(x, axes)


def transpose(x: Array, perm: Ints) -> Array:
    return np.transpose(x, perm)


def reverse(x: Array, axes: Ints | None = None) -> Array:
    return np.flip(x, axes)


def concat(values: Arrays, axis: int, interleave: bool = False) -> Array:
    """`interleave` takes one slice of each value in turn."""
    if not interleave:
        return np.concatenate(values, axis)
    stacked = np.stack([np.moveaxis(value, axis, 0) for value in values], 1)
    return np.moveaxis(stacked.reshape(-1, *stacked.shape[2:]), 0, axis)


def stack(values: Arrays, axis: int) -> Array:
    return np.stack(values, axis)


def split(x: Array, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None) -> list[Array]:
    if split_sizes:
        return np.split(x, np.cumsum(split_sizes)[:-1], axis)
    if num_splits is None:
        raise ValueError("neither num_splits nor split_sizes is given")
    return np.split(x, num_splits, axis)


def tile(x: Array, reps: Ints) -> Array:
    return np.tile(x, reps)


def pad(x: Array, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Array:
    """`pad` is (before, after) of the last axes."""
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    widths = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    if mode == "constant":
        return np.pad(x, widths, constant_values=constant_val)
    if mode == "reflect":
        return np.pad(x, widths, "reflect")
    if mode == "replicate":
        return np.pad(x, widths, "edge")
    raise ValueError(f"mode {mode!r} is unknown")


def slice_by_index(
    x: Array,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Array:
    """A set mask bit means: from the start, to the end, or this one index and no axis."""
    return x[_index(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)]


def slice_update(
    x: Array,
    update: Array,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Array:
    """`x` with the slice that slice_by_index would take replaced by `update`."""
    result = x.copy()
    result[_index(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)] = update
    return result


def slice_by_size(x: Array, begin: Ints, size: Ints) -> Array:
    """A size of -1 means the rest of that axis."""
    starts = [start % length for start, length in zip(begin, x.shape, strict=True)]
    ends = [None if count == -1 else start + count for start, count in zip(starts, size, strict=True)]
    return x[tuple(slice(start, end) for start, end in zip(starts, ends, strict=True))]


def band_part(x: Array, lower: int = -1, upper: int = -1) -> Array:
    """Zero outside a band of the last two axes; a negative bound keeps that whole side."""
    row, column = np.indices(x.shape[-2:])
    keep = ((lower < 0) | (row - column <= lower)) & ((upper < 0) | (column - row <= upper))
    return np.where(keep, x, np.zeros((), x.dtype))


def fill(shape: Ints, value: Array | None = None) -> Array:
    return np.full(shape, np.float32(0) if value is None else value)


def fill_like(ref_tensor: Array, value: Array | None = None) -> Array:
    return fill(ref_tensor.shape, value)


def range_1d(end: Array, start: Array, step: Array) -> Array:
    return np.arange(start, end, step, dtype=start.dtype)


def _index(
    x: Array,
    begin: Ints,
    end: Ints,
    stride: Ints | None,
    begin_mask: Bools | None,
    end_mask: Bools | None,
    squeeze_mask: Bools | None,
) -> tuple[int | slice, ...]:
    rank = x.ndim
    steps, off = stride or (1,) * rank, (False,) * rank
    axes = zip(begin, end, steps, begin_mask or off, end_mask or off, squeeze_mask or off, strict=True)
    return tuple(
        first if single else slice(None if from_start else first, None if to_end else last, step)
        for first, last, step, from_start, to_end, single in axes
    )
