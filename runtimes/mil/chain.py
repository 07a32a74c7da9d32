"""Functions of several packages in turn, as if they were one: what one gives the next ones take, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from runtimes.contract import Array
from runtimes.mil.evaluate import Named
from runtimes.mil.program import Function, Operation
from runtimes.mil.types import TensorType


@dataclass(frozen=True)
class Whole:
    """What a chain takes and gives from outside, as a `Function` says it of itself."""

    name: str
    inputs: Mapping[str, TensorType]
    states: Mapping[str, TensorType]
    operations: tuple[Operation, ...]
    types: Mapping[str, TensorType]

    def output_types(self) -> dict[str, TensorType]:
        """All outputs that no later function takes."""
        return dict(self.types)


class Part(Protocol):
    """An evaluator, or what runs as one."""

    @property
    def function(self) -> Function | Whole:
        """What it takes and gives."""

    def run(self, inputs: Mapping[str, Array], states: Mapping[str, Array]) -> tuple[Named, Named]:
        """Outputs by name, and the states after the call."""


class Chain:
    """Evaluators in turn; what a function takes and no earlier one gives comes from outside. Pure."""

    def __init__(self, evaluators: Sequence[Part]) -> None:
        self._evaluators = tuple(evaluators)
        inputs: dict[str, TensorType] = {}
        given: dict[str, TensorType] = {}
        states: dict[str, TensorType] = {}
        taken: set[str] = set()
        for function in (evaluator.function for evaluator in self._evaluators):
            taken |= function.inputs.keys() & given.keys()
            inputs |= {name: kind for name, kind in function.inputs.items() if name not in given}
            states |= function.states
            given |= function.output_types()
        operations = tuple(op for evaluator in self._evaluators for op in evaluator.function.operations)
        outputs = {name: kind for name, kind in given.items() if name not in taken}
        self.function = Whole(self._evaluators[0].function.name, inputs, states, operations, outputs)

    def run(self, inputs: Mapping[str, Array], states: Mapping[str, Array]) -> tuple[Named, Named]:
        """As an evaluator's."""
        values, kept = dict(inputs), dict(states)
        for evaluator in self._evaluators:
            function = evaluator.function
            taken = {name: values[name] for name in function.inputs}
            outputs, after = evaluator.run(taken, {name: kept[name] for name in function.states})
            values |= outputs
            kept |= after
        return {name: values[name] for name in self.function.types}, kept
