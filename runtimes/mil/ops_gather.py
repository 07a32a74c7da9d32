"""Reading and writing elements by index; these see every type as it is, half precision included.

Functions bear the names, parameters and defaults of MIL's operations (iOS 15 to 18). A parameter `validate_indices`
exists since iOS 17, where a negative index is out of range and what it reads is undefined; here it is an error.
"""

# MIL documents its operations: docstrings here say only what is easily mistaken.
# ruff: noqa: D103
# numpy types many of its results as Any.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from runtimes.contract import Array

_UPDATE: dict[str, Callable[[Array, Any, Array], None]] = {
    "add": np.add.at,
    "sub": np.subtract.at,
    "mul": np.multiply.at,
    "div": np.divide.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}


def gather(x: Array, indices: Array, axis: int = 0, batch_dims: int = 0, validate_indices: bool | None = None) -> Array:
    """The first `batch_dims` axes of `x` and `indices` are paired, the rest as in np.take."""
    _refuse_negative(indices, validate_indices)
    if batch_dims == 0:
        return np.take(x, indices, axis)
    batch = x.shape[:batch_dims]
    axis = axis % x.ndim - batch_dims
    pairs = zip(x.reshape(-1, *x.shape[batch_dims:]), indices.reshape(-1, *indices.shape[batch_dims:]), strict=True)
    rows = np.stack([np.take(row, index, axis) for row, index in pairs])
    return rows.reshape(*batch, *rows.shape[1:])


def gather_along_axis(x: Array, indices: Array, axis: int = 0, validate_indices: bool | None = None) -> Array:
    _refuse_negative(indices, validate_indices)
    return np.take_along_axis(x, indices.astype(np.intp), axis)


def gather_nd(x: Array, indices: Array, batch_dims: int = 0, validate_indices: bool | None = None) -> Array:
    """The last axis of `indices` holds one index per leading axis of `x` after the batch axes."""
    _refuse_negative(indices, validate_indices)
    if batch_dims == 0:
        return x[_points(indices)]
    batch = x.shape[:batch_dims]
    pairs = zip(x.reshape(-1, *x.shape[batch_dims:]), indices.reshape(-1, *indices.shape[batch_dims:]), strict=True)
    rows = np.stack([row[_points(index)] for row, index in pairs])
    return rows.reshape(*batch, *rows.shape[1:])


def scatter(
    data: Array,
    indices: Array,
    updates: Array,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool | None = None,
) -> Array:
    """Slice i of `updates` along `axis` goes to slice indices[i] of `data`."""
    _refuse_negative(indices, validate_indices)
    return _updated(data, (slice(None),) * (axis % data.ndim) + (indices,), updates, mode)


def scatter_along_axis(
    data: Array,
    indices: Array,
    updates: Array,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool | None = None,
) -> Array:
    """Element by element, the place along `axis` given by `indices`, which has the shape of `updates`."""
    _refuse_negative(indices, validate_indices)
    places: list[Array] = list(np.indices(indices.shape, sparse=True))
    places[axis] = indices
    return _updated(data, tuple(places), updates, mode)


def scatter_nd(
    data: Array, indices: Array, updates: Array, mode: str = "add", validate_indices: bool | None = None
) -> Array:
    """The last axis of `indices` holds one index per leading axis of `data`."""
    _refuse_negative(indices, validate_indices)
    return _updated(data, _points(indices), updates, mode)


def _points(indices: Array) -> tuple[Array, ...]:
    return tuple(np.moveaxis(indices, -1, 0))


def _updated(data: Array, places: tuple[slice | Array, ...], updates: Array, mode: str) -> Array:
    result = data.copy()
    if mode == "update":
        result[places] = updates
    elif mode in _UPDATE:
        _UPDATE[mode](result, places, updates)
    else:
        raise ValueError(f"mode {mode!r} is unknown")
    return result


def _refuse_negative(indices: Array, validate_indices: bool | None) -> None:
    if validate_indices is not None and np.any(indices < 0):
        raise ValueError(f"index {indices.min()} is negative, which is undefined since iOS 17")
