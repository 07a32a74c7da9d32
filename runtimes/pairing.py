"""State tensors that hold a matrix in two parts, high and low, and the whole that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from runtimes.contract import Array, TensorSpec

SCALE = 2.0**11  # low parts are kept larger by as much as float16 has bits, or they would be among its subnormals
LOW = ".low"


def paired(high: TensorSpec) -> tuple[TensorSpec, TensorSpec]:
    """The two parts of a tensor: `blocks.3.att.wkv`, and `blocks.3.att.wkv.low`, which starts at zero."""
    return high, replace(high, name=high.name + LOW, fill=0.0, scale=1 / SCALE)


def wholes(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """What stands for the tensors outside: pairs are one each, in float32, which holds both parts."""
    lows = {spec.name for spec in specs if spec.scale is not None}
    kept = (spec for spec in specs if spec.scale is None)
    return tuple(replace(spec, dtype="float32") if spec.name + LOW in lows else spec for spec in kept)


def summed(specs: Sequence[TensorSpec], tensors: Sequence[Array]) -> list[Array]:
    """The arrays of `wholes(specs)`."""
    made: list[Array] = []
    for spec, tensor in zip(specs, tensors, strict=True):
        if spec.scale is None:
            made.append(tensor)
        else:
            made[-1] = made[-1].astype(np.float32) + tensor.astype(np.float32) * np.float32(spec.scale)
    return made


def split(specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> list[Array]:
    """The tensors of `specs` from arrays of `wholes(specs)`: as much as fits into a high part is there."""
    made: list[Array] = []
    rest = iter(arrays)
    for spec in specs:
        if spec.scale is None:
            whole = next(rest)
            made.append(whole.astype(spec.dtype, copy=False))
        else:
            made.append(((whole - made[-1].astype(np.float32)) / np.float32(spec.scale)).astype(spec.dtype))
    return made
