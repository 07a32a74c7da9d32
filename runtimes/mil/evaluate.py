"""Runs one linked function: a tight loop that checks every result against its declaration; it resolves nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from runtimes.contract import Array
from runtimes.errors import BadArtifact, WrongCall, did_you_mean
from runtimes.mil.link import Slots, link
from runtimes.mil.precision import rounded
from runtimes.mil.program import Function, Operation
from runtimes.mil.types import TensorType
from runtimes.mil.weights import Weights

Named = dict[str, Array]
Watch = Callable[[Operation, Named, Weights], None]
"""Told of every operation, what it gave, and where its constants are."""


class Evaluator:
    """A function with its constants loaded; pure: state goes in and comes out. Raises BadArtifact.

    half_sums: products that give float16 are summed in it, not in float32
    watch:     called after every operation
    """

    def __init__(
        self, function: Function, weights: Weights, *, half_sums: bool = False, watch: Watch | None = None
    ) -> None:
        self.function = function
        self._linked = link(function, weights, half_sums=half_sums)
        self._weights, self._watch = weights, watch

    def run(self, inputs: Mapping[str, Array], states: Mapping[str, Array]) -> tuple[Named, Named]:
        """Outputs by name, and the states after the call.

        Raises WrongCall where a name, type or shape is not the declared one, BadArtifact where an operation fails.
        """
        _check("input", inputs, self.function.inputs)
        _check("state", states, self.function.states)
        slots: Slots = [None] * len(self._linked.slots)
        for name, value in (*inputs.items(), *states.items()):
            slots[self._linked.slots[name]] = value
        with np.errstate(all="ignore"):  # infinity and NaN are results here, as they are on a device
            self._run(slots)
        outputs = {name: np.asarray(get(slots)) for name, get in self._linked.outputs.items()}
        return outputs, {name: slots[self._linked.slots[name]] for name in states}

    def _run(self, slots: Slots) -> None:
        text = ""
        try:
            for operation, call in zip(self.function.operations, self._linked.calls, strict=True):
                text = call.text
                values = call.compute(**{name: get(slots) for name, get in call.arguments})
                if not isinstance(values, tuple | list):
                    values = (values,)
                for result, value in zip(call.results, values, strict=True):
                    array = np.asarray(value)
                    if call.arithmetic:
                        array = rounded(array, result.dtype)
                    if array.dtype != result.dtype or array.shape != result.shape:
                        raise ValueError(
                            f"computes {array.dtype}{list(array.shape)}, declared {result.dtype}{list(result.shape)}"
                        )
                    slots[result.slot] = array
                if self._watch:
                    given = (slots[result.slot] for result in call.results)
                    self._watch(operation, dict(zip(operation.outputs, given, strict=False)), self._weights)
                for slot in call.dead:
                    slots[slot] = None
        except (ValueError, IndexError, TypeError) as error:
            raise BadArtifact(f"{text} in function {self.function.name}: {error}") from error


def _check(what: str, given: Mapping[str, Array], declared: Mapping[str, TensorType]) -> None:
    for name in given.keys() ^ declared.keys():
        raise WrongCall(
            f"{what} {name} is {'missing' if name in declared else 'unknown'}", hint=did_you_mean(name, declared)
        )
    for name, expected in declared.items():
        value = given[name]
        if value.dtype != expected.dtype or value.shape != expected.shape:
            raise WrongCall(f"{what} {name} is {value.dtype}{list(value.shape)}, expected {expected}")
