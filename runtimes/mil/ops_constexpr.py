"""Compressed weights to dense ones, once when a program is loaded; results are float32 where they were computed.

Functions bear the names and parameters of MIL's constexpr operations; where iOS 16 and iOS 18 differ, the parameter
`shape` exists in the older one, whose `indices` and `mask` are packed bits.
"""

# MIL documents its operations: docstrings here say only what is easily mistaken.
# ruff: noqa: D103
# numpy types many of its results as Any.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math

import numpy as np

from runtimes.contract import Array
from runtimes.mil.binding import Ints
from runtimes.mil.types import unpack_bits


def constexpr_cast(source_val: Array, output_dtype: str) -> Array:
    if output_dtype != "fp32":
        raise ValueError(f"output_dtype {output_dtype!r} is unknown")
    return source_val.astype(np.float32)


def constexpr_affine_dequantize(quantized_data: Array, zero_point: Array, scale: Array, axis: int) -> Array:
    """scale * (data - zero_point), both scalars or one per element of `axis`."""
    shape = [1] * quantized_data.ndim
    shape[axis] = -1
    centred = quantized_data.astype(np.float32) - zero_point.reshape(shape).astype(np.float32)
    return centred * scale.reshape(shape).astype(np.float32)


def constexpr_blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """scale * (data - offset), one of each per block; blocks divide every axis evenly."""
    blocks = [size for count, total in zip(scale.shape, data.shape, strict=True) for size in (count, total // count)]
    apart = [size for count in scale.shape for size in (count, 1)]
    values = data.reshape(blocks).astype(np.float32)
    if offset is not None:
        values -= offset.reshape(apart).astype(np.float32)
    values *= scale.reshape(apart).astype(np.float32)
    return values.reshape(data.shape)


def constexpr_lut_to_dense(
    indices: Array, lut: Array, shape: Ints | None = None, vector_axis: int | None = None
) -> Array:
    """Every index becomes its entry of a table.

    iOS 16: `lut` is (entries,). iOS 18: (*groups, entries, vector), the groups divide the axes of `indices` evenly,
    and an entry of several values lies along `vector_axis`.
    """
    if shape is not None:
        return lut[unpack_bits(indices, int(lut.size).bit_length() - 1, math.prod(shape))].reshape(shape)
    if lut.ndim != indices.ndim + 2:
        raise ValueError(f"lut has rank {lut.ndim}, expected {indices.ndim + 2}")
    groups = [
        np.repeat(np.arange(count), size // count) for count, size in zip(lut.shape[:-2], indices.shape, strict=True)
    ]
    entries = lut[(*np.ix_(*groups), indices)]  # (*indices, vector)
    if vector_axis is None:
        return entries.squeeze(-1)
    axis = vector_axis % indices.ndim
    spread = list(indices.shape)
    spread[axis] *= lut.shape[-1]
    return np.moveaxis(entries, -1, axis + 1).reshape(spread)


def constexpr_sparse_to_dense(nonzero_data: Array, mask: Array, shape: Ints | None = None) -> Array:
    """Zero but where `mask` is set, there the next of `nonzero_data`."""
    if shape is not None:
        mask = unpack_bits(mask, 1, math.prod(shape)).reshape(shape)
    dense = np.zeros(mask.shape, nonzero_data.dtype)
    dense[mask != 0] = nonzero_data
    return dense


def constexpr_lut_to_sparse(
    indices_mask: Array, indices_nonzero_data: Array, lut: Array, vector_axis: int | None = None
) -> tuple[Array, Array]:
    """The mask of the result and its nonzero values; both grow along `vector_axis`."""
    indices = constexpr_sparse_to_dense(indices_nonzero_data, indices_mask)
    dense = constexpr_lut_to_dense(indices, lut, None, vector_axis)
    mask = indices_mask if vector_axis is None else np.repeat(indices_mask, lut.shape[-1], axis=vector_axis)
    return mask, dense[mask != 0]


def constexpr_sparse_blockwise_shift_scale(
    data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None
) -> tuple[Array, Array]:
    """The mask, unchanged, and scale * (data - offset) of the nonzero values."""
    dense = constexpr_blockwise_shift_scale(constexpr_sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]
