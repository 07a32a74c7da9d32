"""A Core ML function as plain data: operations in order, constants described but not read; it computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtimes.errors import BadArtifact
from runtimes.mil import protobuf
from runtimes.mil.types import ELEMENTS, TensorType


@dataclass(frozen=True)
class Inline:
    """A constant inside the model file: packed little-endian bytes, or the text of a string."""

    type: TensorType
    data: bytes | str


@dataclass(frozen=True)
class Stored:
    """A constant in a weight file, `file` relative to the model file's folder."""

    type: TensorType
    file: str
    offset: int


@dataclass(frozen=True)
class Expanded:
    """Output number `output` of a constexpr operation: a constant computed from constants when loaded."""

    type: TensorType
    kind: str
    arguments: tuple[tuple[str, Constant], ...]
    output: int


Constant = Inline | Stored | Expanded


@dataclass(frozen=True)
class Ref:
    """A value known only when running: a function input, a state, or an operation's output."""

    name: str


Argument = tuple[Ref | Constant, ...]
"""The values bound to one parameter: several for a parameter such as concat's `values`, else one."""


@dataclass(frozen=True)
class Operation:
    """One operation, by MIL name, with named and typed outputs."""

    kind: str
    arguments: Mapping[str, Argument]
    outputs: Mapping[str, TensorType]

    def __str__(self) -> str:
        return f"operation {self.kind} ({', '.join(self.outputs) or 'no output'})"


@dataclass(frozen=True)
class Function:
    """One entry point.

    states:  tensors the caller keeps between calls, changed by write_state operations
    outputs: name -> the value that is returned under it
    """

    name: str
    inputs: Mapping[str, TensorType]
    states: Mapping[str, TensorType]
    operations: tuple[Operation, ...]
    outputs: Mapping[str, Ref | Constant]

    def output_types(self) -> dict[str, TensorType]:
        """What is returned: declared by operations, constants, or inputs returned as they came."""
        known = {**self.inputs, **self.states}
        for operation in self.operations:
            known.update(operation.outputs)
        return {
            name: known[value.name] if isinstance(value, Ref) else value.type for name, value in self.outputs.items()
        }


def parse_function(name: str, message: Any) -> Function:
    """The active block of a protobuf Function; raises BadArtifact naming what does not fit."""
    if message.opset not in message.block_specializations:
        raise BadArtifact(f"function {name} has no block for its opset {message.opset!r}")
    block = message.block_specializations[message.opset]
    inputs, states = {}, {}
    for port in message.inputs:
        if port.type.WhichOneof("type") == "stateType":
            states[port.name] = _tensor_type(port.type.stateType.wrappedType, port.name)
        else:
            inputs[port.name] = _tensor_type(port.type, port.name)
    reader = _Reader({port: Ref(port) for port in (*inputs, *states)})
    operations = tuple(reader.operations(block))
    outputs = {output: reader.lookup(output, "the function's outputs") for output in block.outputs}
    return Function(name, inputs, states, operations, outputs)


class _Reader:
    """Reads operations in order; `scope` is what they may refer to by name."""

    def __init__(self, scope: dict[str, Ref | Constant]) -> None:
        self._scope = scope

    def operations(self, block: Any) -> Iterator[Operation]:
        for message in block.operations:
            for port in message.outputs:
                if port.name in self._scope:
                    raise BadArtifact(f"value {port.name} is declared twice")
            if message.type == "const":
                for port in message.outputs:
                    self._scope[port.name] = constant(message.attributes["val"], port.name)
                continue
            outputs = {port.name: _tensor_type(port.type, port.name) for port in message.outputs}
            operation = Operation(message.type, self._arguments(message), outputs)
            if message.blocks:
                raise BadArtifact(f"{operation} has nested blocks: control flow is not supported")
            if message.type.startswith("constexpr_"):
                self._scope.update(_expanded(operation))
            else:
                self._scope.update({name: Ref(name) for name in outputs})
                yield operation

    def _arguments(self, message: Any) -> dict[str, Argument]:
        """Inputs, and attributes where older operations keep their arguments; names resolved to constants."""
        user = f"operation {message.type} ({', '.join(port.name for port in message.outputs)})"
        arguments: dict[str, Argument] = {
            parameter: tuple(
                self.lookup(binding.name, user)
                if binding.WhichOneof("binding") == "name"
                else constant(binding.value, parameter)
                for binding in argument.arguments
            )
            for parameter, argument in message.inputs.items()
        }
        for parameter, value in message.attributes.items():
            if parameter != "name":
                arguments[parameter] = (constant(value, parameter),)
        return arguments

    def lookup(self, name: str, user: str) -> Ref | Constant:
        if name not in self._scope:
            raise BadArtifact(f"value {name} is used by {user} but never declared before")
        return self._scope[name]


def _expanded(operation: Operation) -> dict[str, Expanded]:
    arguments = []
    for parameter, values in sorted(operation.arguments.items()):
        if len(values) != 1 or isinstance(values[0], Ref):
            raise BadArtifact(f"{operation} takes one constant for {parameter}")
        arguments.append((parameter, values[0]))
    return {
        name: Expanded(expected, operation.kind, tuple(arguments), output)
        for output, (name, expected) in enumerate(operation.outputs.items())
    }


def _tensor_type(message: Any, name: str) -> TensorType:
    found = _type(message, name)
    if found.element not in ELEMENTS:
        raise BadArtifact(f"{name} has element type {found.element}, which is not supported")
    return found


def _type(message: Any, name: str) -> TensorType:
    if message.WhichOneof("type") != "tensorType":
        raise BadArtifact(f"{name} is a {message.WhichOneof('type')}: only tensors are supported")
    tensor = message.tensorType
    if any(dimension.WhichOneof("dimension") != "constant" for dimension in tensor.dimensions):
        raise BadArtifact(f"{name} has a flexible dimension: only fixed shapes are supported")
    shape = tuple(dimension.constant.size for dimension in tensor.dimensions)
    if tensor.rank != len(shape):
        raise BadArtifact(f"{name} has rank {tensor.rank} but {len(shape)} dimensions")
    return TensorType(protobuf.element_name(tensor.dataType), shape)


def constant(message: Any, name: str) -> Inline | Stored:
    """A protobuf Value; raises BadArtifact where it is no tensor of a known type and a fixed shape."""
    if message.WhichOneof("value") == "blobFileValue":
        blob = message.blobFileValue
        return Stored(_tensor_type(message.type, name), blob.fileName, blob.offset)
    if message.immediateValue.WhichOneof("value") != "tensor":
        raise BadArtifact(f"constant {name} is not a tensor")
    tensor = message.immediateValue.tensor
    if tensor.WhichOneof("value") == "strings":
        return Inline(TensorType("STRING", ()), "".join(tensor.strings.values))
    expected = _tensor_type(message.type, name)
    return Inline(expected, _packed(tensor, expected, name))


def _packed(tensor: Any, expected: TensorType, name: str) -> bytes:
    """Values as they would be packed in a file; which field holds them depends on the element type."""
    field = tensor.WhichOneof("value")
    values = getattr(tensor, field).values if field else b""
    try:
        data = values if isinstance(values, bytes) else np.array(list(values), expected.dtype).tobytes()
    except (OverflowError, ValueError) as error:
        raise BadArtifact(f"constant {name} of {expected}: {error}") from error
    if len(data) != expected.bytes:
        raise BadArtifact(f"constant {name} holds {len(data)} bytes, expected {expected.bytes} for {expected}")
    return data
