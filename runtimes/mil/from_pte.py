"""Takes Core ML models out of ExecuTorch programs as the Core ML delegate would on a device; it runs nothing.

A delegate's data is a small file system, or the key of one that methods share: the files' contents, then their table
as JSON, last character first (ExecuTorch's backends/apple/coreml/runtime/inmemoryfs).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from runtimes.errors import BadArtifact
from runtimes.mil.types import TensorType
from runtimes.pte.program import Program
from runtimes.untrusted import leaves

DELEGATE = "CoreMLBackend"
PACKAGE = "model.mlpackage"
_REFERENCE = b"CMJR"
_ELEMENTS = {"INT": "INT32", "LONG": "INT64", "FLOAT": "FLOAT32", "HALF": "FLOAT16"}
_LONGEST = 1 << 20  # bytes of a table; a package has a dozen files
_LONGEST_PATH = 200  # bytes


@dataclass(frozen=True)
class Port:
    """A tensor of a method, and what the Core ML model calls it; None where the model does not read it."""

    type: TensorType
    name: str | None


@dataclass(frozen=True)
class Call:
    """How a method calls its Core ML model.

    data:     the file system that holds the package
    function: of the package, its default one for None
    inputs, outputs: in the order of the method's own
    """

    data: bytes
    function: str | None
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def call(program: Program, method: str) -> Call:
    """The one call that `method` consists of; raises BadArtifact where there is more to it, or something else."""
    plan, values = program.plan(method), program.arguments(method, DELEGATE)
    data, function = _resolved(program, method)
    taken, given = _names(data, method if function else None)
    if len(values) != len(taken) + len(given):
        raise BadArtifact(f"method {method} passes {len(values)} values to a model of {len(taken)} + {len(given)}")
    with program.intact():
        ports = _Ports(plan.values, dict(zip(values, [*taken, *given], strict=True)))
        return Call(data, function, ports.of(plan.inputs), ports.of(plan.outputs))


@dataclass(frozen=True)
class _Ports:
    """The values of a method's plan, and the model's names by their numbers."""

    values: Sequence[Any]
    names: Mapping[int, str]

    def of(self, numbers: Sequence[int]) -> tuple[Port, ...]:
        return tuple(Port(self.type(number), self.names.get(number)) for number in numbers)

    def type(self, number: int) -> TensorType:
        tensor = self.values[number].val
        return TensorType(_ELEMENTS.get(tensor.scalar_type.name, tensor.scalar_type.name), tuple(tensor.sizes))


def unpack(data: bytes, folder: Path) -> Path:
    """Write a delegate's file system into `folder` and return the Core ML package in it; raises BadArtifact."""
    for name, content in files(data).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / PACKAGE


def files(data: bytes) -> dict[str, memoryview]:
    """The files of a delegate's file system by path; raises BadArtifact."""
    try:
        nodes = _table(data)["nodes"]
        found = dict(_walk(memoryview(data), nodes, len(nodes) - 1, PurePosixPath(), set()))
        if (total := sum(map(len, found.values()))) > len(data):
            raise ValueError(f"files of {total} bytes in {len(data)}")
        return found
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise BadArtifact(f"the Core ML delegate's data cannot be read: {error!r}", hint="export again") from error


def _table(data: bytes) -> Any:
    """The JSON document that begins with the last byte and is written backwards."""
    document, _ = json.JSONDecoder().raw_decode(data[: -_LONGEST - 1 : -1].decode("latin-1"))
    return document


def _walk(
    data: memoryview, nodes: Any, index: int, path: PurePosixPath, seen: set[int]
) -> Iterator[tuple[str, memoryview]]:
    """Files below a node, children coming before their folder in the list; the topmost node has no name.

    seen: nodes that were in another folder: a few of those could hold each other more often than there is time for
    """
    node = nodes[index]
    if node["kind"] == 0:
        if not path.parts:
            raise ValueError("its topmost node is a file")
        start, size = node["dataRegion"]["offset"], node["dataRegion"]["size"]
        if not 0 <= start <= start + size <= len(data):
            raise ValueError(f"{path} lies outside of the data")
        yield str(path), data[start : start + size]
        return
    for name, child in node["children"].items():
        if child >= index or child in seen or leaves(name) or "/" in name or not name.isprintable():
            raise ValueError(f"file name {name!r}")
        if (size := len(bytes(path / name))) > _LONGEST_PATH:
            raise ValueError(f"a path of {size} bytes")
        seen.add(child)
        yield from _walk(data, nodes, child, path / name, seen)


def _resolved(program: Program, method: str) -> tuple[bytes, str | None]:
    """The file system a method's delegate has or refers to, and the function it names in the latter case."""
    data = program.blob(method)
    if not data.startswith(_REFERENCE):
        return data, None
    try:
        reference = json.loads(data[len(_REFERENCE) :])
        return program.shared(reference["key"]), str(reference["functionName"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadArtifact(f"the Core ML reference of method {method} cannot be read: {error!r}") from error


def _names(data: bytes, method: str | None) -> tuple[list[str], list[str]]:
    """Input and output names from the file system's metadata, those of one method where it has several."""
    try:
        metadata = json.loads(bytes(files(data)["metadata.json"]))
        names = metadata["methods"][method] if method else metadata
        return list(map(str, names["inputNames"])), list(map(str, names["outputNames"]))
    except (ValueError, KeyError, TypeError) as error:
        raise BadArtifact(f"the Core ML model's metadata.json cannot be read: {error!r}") from error
