"""Reads a Core ML program leniently, as facts for rules to look at; what it cannot run it still describes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.errors import BadArtifact
from runtimes.mil import protobuf
from runtimes.mil.package import model_file, read_model
from runtimes.mil.program import Inline, Stored, constant

HALF = 2  # bytes


@dataclass(frozen=True)
class Value:
    """What an operation takes or gives.

    element:  MIL name, "FLOAT16"
    shape:    None for a flexible dimension
    constant: known when the model is saved
    number:   the one number of a constant that is held in the model file
    """

    name: str
    element: str
    shape: tuple[int | None, ...]
    constant: bool = False
    number: float | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape with zeros for what is flexible."""
        return tuple(size or 0 for size in self.shape)

    @property
    def size(self) -> int:
        """How many elements; 0 where that is flexible."""
        return math.prod(self.sizes)


@dataclass(frozen=True)
class Op:
    """One operation, constants aside; operations of nested blocks follow the one that holds them."""

    kind: str
    inputs: Mapping[str, tuple[Value, ...]]
    outputs: tuple[Value, ...]

    def __str__(self) -> str:
        return f"{self.kind} {self.outputs[0].name}" if self.outputs else self.kind

    def input(self, name: str) -> Value | None:
        """The one value of a parameter."""
        return next(iter(self.inputs.get(name, ())), None)


@dataclass(frozen=True)
class Graph:
    """One function.

    ops:      what runs; `constexpr` are the operations that expand weights
    expanded: bytes of the stored constants as float16
    """

    name: str
    inputs: tuple[Value, ...]
    states: tuple[Value, ...]
    outputs: tuple[Value, ...]
    ops: tuple[Op, ...]
    constexpr: tuple[Op, ...]
    expanded: int


@dataclass(frozen=True)
class Program:
    """One package: its functions, and the bytes of its weight files."""

    name: str
    stored: int
    graphs: tuple[Graph, ...]


def read_program(folder: Path, name: str) -> Program:
    """A .mlpackage; raises BadArtifact."""
    path = model_file(folder)
    model = read_model(path)
    stored = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file() and file != path)
    functions = sorted(model.mlProgram.functions.items())
    return Program(name, stored, tuple(_graph(function, message) for function, message in functions))


def _graph(name: str, message: Any) -> Graph:
    if message.opset not in message.block_specializations:
        raise BadArtifact(f"function {name} has no block for its opset {message.opset!r}")
    block = message.block_specializations[message.opset]
    ports = [(_value(port), port.type.WhichOneof("type") == "stateType") for port in message.inputs]
    reader = _Reader({value.name: value for value, _ in ports})
    every = list(reader.operations(block))
    outputs = [reader.scope[output] for output in block.outputs if output in reader.scope]
    constexpr = tuple(op for op in every if op.kind.startswith("constexpr_"))
    return Graph(
        name,
        tuple(value for value, state in ports if not state),
        tuple(value for value, state in ports if state),
        tuple(outputs),
        tuple(op for op in every if op not in constexpr),
        constexpr,
        HALF * sum(reader.weights.values()),
    )


class _Reader:
    """Walks a block; `scope` has every value by name, `weights` the elements of stored constants as they expand."""

    def __init__(self, scope: dict[str, Value]) -> None:
        self.scope = scope
        self.weights: dict[str, int] = {}

    def operations(self, block: Any) -> Iterator[Op]:
        for message in block.operations:
            if message.type == "const":
                self._const(message)
                continue
            op = self._operation(message)
            self.scope.update({value.name: value for value in op.outputs})
            yield op
            for inner in message.blocks:
                self.scope.update({port.name: _value(port) for port in inner.inputs})
                yield from self.operations(inner)

    def _const(self, message: Any) -> None:
        for port in message.outputs:
            value = _constant(message.attributes["val"], port.name)
            self.scope[port.name] = value
            if message.attributes["val"].WhichOneof("value") == "blobFileValue":
                self.weights[port.name] = value.size

    def _operation(self, message: Any) -> Op:
        inputs = {
            parameter: tuple(
                self.scope.get(binding.name, Value(binding.name, "", ()))
                if binding.WhichOneof("binding") == "name"
                else _constant(binding.value, parameter)
                for binding in argument.arguments
            )
            for parameter, argument in message.inputs.items()
        }
        for parameter, attribute in message.attributes.items():
            if parameter != "name":
                inputs[parameter] = (_constant(attribute, parameter),)
        expands = message.type.startswith("constexpr_")
        outputs = tuple(_value(port, constant=expands) for port in message.outputs)
        if expands:
            for values in inputs.values():
                for value in values:
                    self.weights.pop(value.name, None)
            self.weights.update({value.name: value.size for value in outputs})
        return Op(message.type, inputs, outputs)


def _value(port: Any, *, constant: bool = False) -> Value:
    kind = port.type.stateType.wrappedType if port.type.WhichOneof("type") == "stateType" else port.type
    return Value(port.name, *_type(kind), constant=constant)


def _type(message: Any) -> tuple[str, tuple[int | None, ...]]:
    if message.WhichOneof("type") != "tensorType":
        return str(message.WhichOneof("type")), ()
    tensor = message.tensorType
    sizes = (d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
    return protobuf.element_name(tensor.dataType), tuple(sizes)


def _constant(message: Any, name: str) -> Value:
    try:
        found = constant(message, name)
    except BadArtifact:
        return Value(name, *_type(message.type), constant=True)
    number = None
    if isinstance(found, Inline) and isinstance(found.data, bytes) and math.prod(found.type.shape) == 1:
        number = float(found.type.unpack(np.frombuffer(found.data, np.uint8)).item())
    shape = found.type.shape if isinstance(found, Inline | Stored) else ()
    return Value(name, found.type.element, shape, constant=True, number=number)
