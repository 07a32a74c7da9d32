"""Every value of a Core ML program as our interpreter computes it, one by one; it evaluates nothing itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from runtimes.backends import mil
from runtimes.contract import Array, Artifact
from runtimes.mil.evaluate import Named
from runtimes.mil.program import Constant, Operation, Ref
from runtimes.mil.weights import Weights
from validation.localise.tape import Op

FLOATS = ("FLOAT16", "FLOAT32")


class MilTap:
    """An artifact opened by the interpreter, which tells of every operation; raises BadArtifact or Missing.

    Where packages run in turn, names that several of them have are told apart: "add_3", "add_3@2".
    """

    whole = True

    def __init__(self, artifact: Artifact, device: str = "cpu") -> None:
        self.session = mil.open_session(artifact, device, self._watch)
        self.begin()

    def begin(self) -> None:
        """Forget the last step."""
        self._ops: list[Op] = []
        self._values: dict[str, Array] = {}
        self._latest: dict[str, str] = {}

    def operations(self) -> Sequence[Op]:
        """Those of the last step."""
        return self._ops

    def values(self) -> Mapping[str, Array]:
        """Of the last step, those of floating point."""
        return self._values

    def _watch(self, operation: Operation, given: Named, weights: Weights) -> None:
        values = [value for values in operation.arguments.values() for value in values]
        inputs = tuple(self._latest.get(value.name, value.name) for value in values if isinstance(value, Ref))
        outputs = [self._own(name) for name in given]
        for name, array in zip(outputs, given.values(), strict=True):
            if array.dtype.kind == "f":
                self._values[name] = np.array(array)
        stored = dict(_constants(operation))
        name = outputs[0] if outputs else operation.kind
        read = partial(_read, stored, weights)
        self._ops.append(Op(operation.kind, name, inputs, tuple(outputs), constants=read))

    def _own(self, name: str) -> str:
        """What a new value is called, which later operations mean by `name`."""
        before = self._latest.get(name)
        number = 1 if before is None else int(before.removeprefix(name).removeprefix("@") or 1) + 1
        self._latest[name] = name if number == 1 else f"{name}@{number}"
        return self._latest[name]


def _constants(operation: Operation) -> Iterator[tuple[str, Constant]]:
    for name, values in operation.arguments.items():
        for number, value in enumerate(values):
            if not isinstance(value, Ref) and value.type.element in FLOATS:
                yield (f"{name}.{number}" if len(values) > 1 else name), value


def _read(stored: Mapping[str, Constant], weights: Weights) -> dict[str, Array]:
    return {name: np.asarray(weights.wide(constant)) for name, constant in stored.items()}
