"""State tensors that hold one kind of state of all layers, and the layers' own tensors that they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from runtimes.contract import Array, TensorSpec


def is_stacked(spec: TensorSpec) -> bool:
    """Whether `spec` is `blocks.*.att.wkv`, (layers, ...), or `blocks.8+*.att.wkv` of those from 8 on.

    Several such names with ", " between them are one tensor too, whose first axis counts them: (names, layers, ...).
    """
    return "*" in spec.name


def parts(spec: TensorSpec) -> tuple[TensorSpec, ...]:
    """The layers' own tensors, `blocks.3.att.wkv`; the tensor itself where it is not stacked."""
    if not is_stacked(spec):
        return (spec,)
    if kinds := _kinds(spec):
        return tuple(part for kind in kinds for part in parts(kind))
    shape, axes = (1, *spec.shape[1:]), ("batch", *spec.axes[1:])
    return tuple(replace(spec, name=name, shape=shape, axes=axes) for name in _names(spec))


def apart(spec: TensorSpec, array: Array) -> dict[str, Array]:
    """Views of `array` by the names of `parts(spec)`."""
    if not is_stacked(spec):
        return {spec.name: array}
    if kinds := _kinds(spec):
        stacks = zip(kinds, array, strict=True)
        return {name: part for kind, stack in stacks for name, part in apart(kind, stack).items()}
    return {name: array[layer : layer + 1] for layer, name in enumerate(_names(spec))}


def together(spec: TensorSpec, arrays: Mapping[str, Array]) -> Array:
    """The tensor of `spec`, a copy, from arrays by the names of `parts(spec)`."""
    if not is_stacked(spec):
        return np.array(arrays[spec.name], spec.dtype, order="C")
    if kinds := _kinds(spec):
        return np.stack([together(kind, arrays) for kind in kinds])
    return np.concatenate([np.asarray(arrays[name], spec.dtype) for name in _names(spec)])


def _kinds(spec: TensorSpec) -> list[TensorSpec]:
    """The tensors of one name each that `spec` is made of, where it has several."""
    names = spec.name.split(", ")
    return [replace(spec, name=name, shape=spec.shape[1:], axes=spec.axes[1:]) for name in names if len(names) > 1]


def _names(spec: TensorSpec) -> Iterator[str]:
    before, _, after = spec.name.partition("*")
    scope, _, start = before.rpartition(".")
    first = int(start.removesuffix("+") or 0)
    return (f"{scope}.{first + layer}{after}" for layer in range(spec.shape[0]))
