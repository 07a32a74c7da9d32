"""Prepares a function for running: operations to functions, names to slots, constants loaded; it runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from runtimes.contract import Array
from runtimes.errors import BadArtifact, did_you_mean
from runtimes.mil.binding import Arrays, Compute, Parameter, check_names, parameters
from runtimes.mil.precision import widened
from runtimes.mil.program import Argument, Constant, Function, Operation, Ref
from runtimes.mil.table import ARITHMETIC, HALF_SUMS, MOVES
from runtimes.mil.types import TensorType
from runtimes.mil.weights import Weights

Slots = list[Any]
"""The values of a running function, by number."""

Getter = Callable[[Slots], Any]


@dataclass(frozen=True)
class Result:
    """Where an output goes and what it must be."""

    slot: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One operation ready to run.

    compute:    its function, constants bound
    arguments:  the other parameters, fetched from the slots
    arithmetic: whether results are rounded to the declared type
    dead:       slots that nothing reads later
    """

    text: str
    compute: Compute
    arguments: tuple[tuple[str, Getter], ...]
    results: tuple[Result, ...]
    arithmetic: bool
    dead: tuple[int, ...]


@dataclass(frozen=True)
class Linked:
    """A whole function: `slots` has a number for every input, state and intermediate value."""

    slots: Mapping[str, int]
    calls: tuple[Call, ...]
    outputs: Mapping[str, Getter]


def link(function: Function, weights: Weights, *, half_sums: bool = False) -> Linked:
    """Raises BadArtifact for an unknown operation, a parameter that does not fit, or a constant that cannot be read.

    half_sums: products that give float16 are summed in it
    """
    names = [*function.inputs, *function.states]
    names += [name for operation in function.operations for name in operation.outputs]
    linker = _Linker({name: slot for slot, name in enumerate(names)}, function.states, weights, half_sums)
    pairs = zip(function.operations, _dead_after(function), strict=True)
    calls = tuple(linker.call(operation, dead) for operation, dead in pairs)
    outputs = {name: linker.getter(value, arithmetic=False) for name, value in function.outputs.items()}
    return Linked(linker.slots, calls, outputs)


@dataclass(frozen=True)
class _Linker:
    slots: Mapping[str, int]
    states: Mapping[str, TensorType]
    weights: Weights
    half_sums: bool

    def call(self, operation: Operation, dead: Collection[str]) -> Call:
        arithmetic = operation.kind in ARITHMETIC
        compute = ARITHMETIC[operation.kind] if arithmetic else MOVES.get(operation.kind)
        if compute is None:
            hint = did_you_mean(operation.kind, [*ARITHMETIC, *MOVES])
            raise BadArtifact(f"{operation} is unknown to this interpreter", hint=hint)
        if self.half_sums and {kind.element for kind in operation.outputs.values()} == {"FLOAT16"}:
            compute = HALF_SUMS.get(operation.kind, compute)
        bound: dict[str, Any] = {}
        fetched: list[tuple[str, Getter]] = []
        try:
            check_names(compute, operation.arguments)
            for name, values in operation.arguments.items():
                parameter = parameters(compute)[name]
                constant = None if parameter.kind == Arrays else _only(values)
                if constant is None or isinstance(constant, Ref):
                    fetched.append((name, self._fetch(parameter, values, arithmetic)))
                else:
                    bound[name] = parameter.convert(self._constant(constant, arithmetic))
        except ValueError as error:
            raise BadArtifact(f"{operation}: {error}") from error
        slots = tuple(self.slots[name] for name in dead)
        return Call(
            str(operation), partial(compute, **bound), tuple(fetched), self._results(operation), arithmetic, slots
        )

    def getter(self, value: Ref | Constant, *, arithmetic: bool) -> Getter:
        if not isinstance(value, Ref):
            constant = self._constant(value, arithmetic)
            return lambda slots: constant
        if arithmetic:
            slot = self.slots[value.name]
            return lambda slots: widened(slots[slot])
        return itemgetter(self.slots[value.name])

    def _fetch(self, parameter: Parameter, values: Argument, arithmetic: bool) -> Getter:
        getters = [self.getter(value, arithmetic=arithmetic and parameter.numeric) for value in values]
        if parameter.kind == Arrays:
            return lambda slots: tuple([get(slots) for get in getters])
        (get,) = getters
        return get if parameter.numeric else lambda slots: parameter.convert(get(slots))

    def _constant(self, constant: Constant, arithmetic: bool) -> Array | str:
        return self.weights.wide(constant) if arithmetic else self.weights.array(constant)

    def _results(self, operation: Operation) -> tuple[Result, ...]:
        outputs = operation.outputs
        if operation.kind == "write_state":
            state = _only(operation.arguments["input"])
            if not isinstance(state, Ref) or state.name not in self.states:
                raise BadArtifact(f"{operation} does not write to a state")
            outputs = {state.name: self.states[state.name]}
        return tuple(Result(self.slots[name], kind.dtype, kind.shape) for name, kind in outputs.items())


def _only(values: Argument) -> Ref | Constant:
    if len(values) != 1:
        raise ValueError(f"{len(values)} values for a parameter that takes one")
    return values[0]


def _dead_after(function: Function) -> list[list[str]]:
    """For every operation, the values that neither a later operation nor the caller reads."""
    kept = {value.name for value in function.outputs.values() if isinstance(value, Ref)} | set(function.states)
    dead = []
    for operation in reversed(function.operations):
        read = {value.name for values in operation.arguments.values() for value in values if isinstance(value, Ref)}
        last = (read | set(operation.outputs)) - kept
        dead.append(sorted(last))
        kept |= last
    return dead[::-1]
