"""Core ML packages on the processor, by our numpy interpreter; says nothing about speed or placement on Apple hardware.

Half precision is rounded after every operation; products are summed in float32, on `cpu-fp16acc` in float16, one addend
after another. See runtimes/mil/precision.py.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from runtimes import lookup
from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import BadArtifact, Missing, did_you_mean
from runtimes.manifest import Graph, Manifest
from runtimes.mil import from_pte, protobuf
from runtimes.mil.chain import Chain, Whole
from runtimes.mil.evaluate import Evaluator, Watch
from runtimes.mil.package import Package
from runtimes.mil.program import Function
from runtimes.mil.scoped import Renamed, outside
from runtimes.mil.types import TensorType, differences
from runtimes.pte.program import Program
from runtimes.session import Tensors, explicit_session

READS = (".mlpackage", ".pte")
DEVICES = ("cpu", "cpu-fp16acc")


def missing(device: str) -> str | None:
    """Reading packages needs coremltools' protobuf schema, not the package's converters."""
    if protobuf.generated_files() is None:
        return "the Python package coremltools is not installed"
    return None


def open_session(artifact: Artifact, device: str, watch: Watch | None = None) -> Session:
    """Load every graph of the artifact; raises BadArtifact where package and manifest disagree, or Missing.

    watch: told of every operation that runs
    """
    manifest = artifact.manifest
    if any(graph.file.endswith(".pte") for graph in manifest.graphs):
        return _open_programs(artifact, device, watch)
    package = functools.cache(lambda file: Package(artifact.folder / file))
    runs = {
        graph.tokens: _Run(
            graph,
            manifest,
            lookup.open_table(artifact, graph),
            _evaluator(graph, manifest, package, device, watch),
        )
        for graph in manifest.graphs
    }
    placed = _placement(device, [run.evaluator for run in runs.values()])
    return explicit_session(artifact, runs, lambda: placed)


def _open_programs(artifact: Artifact, device: str, watch: Watch | None) -> Session:
    """The same for ExecuTorch programs, whose packages lie in a temporary folder until the session is closed."""
    if not find_spec("executorch"):
        raise Missing("reading .pte files needs the Python package executorch, which is not installed")
    folder = tempfile.TemporaryDirectory(prefix="rwkv-export-")
    numbers = itertools.count()
    program = functools.cache(lambda file: Program(artifact.folder / file))
    package = functools.cache(lambda data: Package(from_pte.unpack(data, Path(folder.name) / str(next(numbers)))))
    runs = {}
    for graph in artifact.manifest.graphs:
        call = from_pte.call(program(graph.file), graph.function or "forward")
        opened = package(call.data)
        function = opened.function(call.function)
        _check_call(graph, artifact.manifest, call, function)
        evaluator = Evaluator(function, opened.weights, half_sums=_half_sums(device), watch=watch)
        runs[graph.tokens] = _Called(call, evaluator)
    placed = _placement(device, [run.evaluator for run in runs.values()])
    return explicit_session(artifact, runs, lambda: placed, folder.cleanup)


def _placement(device: str, evaluators: Sequence[Evaluator | Chain]) -> Placement:
    operations = sum(len(evaluator.function.operations) for evaluator in evaluators)
    place = f"mil:{device}"
    return Placement(place, place, {"MIL ops": operations}, evidence="interpreted")


def _half_sums(device: str) -> bool:
    return device == "cpu-fp16acc"


@dataclass(frozen=True)
class _Run:
    """One graph; a state tensor whose input and output are one port is kept by the package, the others are tensors."""

    graph: Graph
    manifest: Manifest
    table: Array | None
    evaluator: Evaluator | Chain

    def __call__(self, tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        shape = self.evaluator.function.inputs[self.graph.input].shape
        inputs = {self.graph.input: lookup.fed(self.graph, self.table, tokens).reshape(shape)}
        inputs |= lookup.masks(self.graph, tokens, self.manifest.state[0].dtype)
        states: dict[str, Array] = {}
        for tensor, value in zip(self.manifest.state, state, strict=True):
            (states if tensor.input == tensor.output else inputs)[tensor.input] = value
        outputs, states = self.evaluator.run(inputs, states)
        after = {**outputs, **states}
        logits = lookup.joined(self.graph, outputs, self.manifest.model.vocab)
        return logits, tuple(after[tensor.output] for tensor in self.manifest.state)


@dataclass(frozen=True)
class _Called:
    """One method of a program: tensors are converted to the model's types and back, as the delegate does."""

    call: from_pte.Call
    evaluator: Evaluator

    def __call__(self, tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        types = self.evaluator.function.inputs
        given = zip(self.call.inputs, (tokens, *state), strict=True)
        inputs = {port.name: value.astype(types[port.name].dtype) for port, value in given if port.name}
        outputs, _ = self.evaluator.run(inputs, {})
        logits, *new = (outputs[port.name or ""].astype(port.type.dtype) for port in self.call.outputs)
        return logits, tuple(new)


def _evaluator(
    graph: Graph, manifest: Manifest, package: Callable[[str], Package], device: str, watch: Watch | None
) -> Evaluator | Chain:
    parts = []
    for file in (graph.file, *graph.then):
        opened = package(file)
        function = opened.function(graph.function)
        if graph.tokens == 1:
            opened.check_default(function)
        parts.append(Evaluator(function, opened.weights, half_sums=_half_sums(device), watch=watch))
    named = [Renamed(part, outside(manifest, graph, number)) for number, part in enumerate(parts, 1)]
    evaluator = Chain(named) if graph.then else parts[0]
    _check_ports(graph, manifest, evaluator.function)
    return evaluator


def _check_ports(graph: Graph, manifest: Manifest, function: Function | Whole) -> None:
    """Names, types and shapes of the manifest's ports are the function's; the logits may have any element type."""
    outputs = function.output_types()
    for name in lookup.logits(graph):
        if name not in outputs:
            raise BadArtifact(f"{graph.file} has no output {name}", hint=did_you_mean(name, outputs))
    states: dict[str, TensorType] = {}
    taken: dict[str, TensorType] = {}
    given: dict[str, TensorType] = {}
    for tensor in manifest.state:
        port = TensorType(tensor.dtype.upper(), tensor.shape)
        if tensor.input == tensor.output:
            states[tensor.input] = port
        else:
            taken[tensor.input] = given[tensor.output] = port
    if graph.mask:
        taken[graph.mask] = TensorType(manifest.state[0].dtype.upper(), (graph.tokens,))
    rows = () if graph.lookup is None else (graph.lookup.width,)
    taken[graph.input] = TensorType(graph.input_dtype.upper(), (*_leading(manifest), graph.tokens, *rows))
    given |= _logits(graph, manifest, outputs)
    for what, wanted, found in (
        ("input", taken, function.inputs),
        ("state", states, function.states),
        ("output", given, outputs),
    ):
        for name, one, other in differences(wanted, found):
            raise BadArtifact(
                f"{what} {name} of {graph.file} is {other or 'absent'}, the manifest says {one or 'absent'}",
                hint="export the model again",
            )


def _logits(graph: Graph, manifest: Manifest, outputs: Mapping[str, TensorType]) -> dict[str, TensorType]:
    """The types of the outputs with the logits; together as many, or more where there is a table to tell how many."""
    parts = {name: outputs[name] for name in lookup.logits(graph)}
    if graph.lookup and sum(part.shape[-1] for part in parts.values()) >= manifest.model.vocab:
        return parts
    return {graph.output: TensorType(outputs[graph.output].element, (*_leading(manifest), 1, manifest.model.vocab))}


def _leading(manifest: Manifest) -> tuple[int, ...]:
    """Axes before those of our own names, of size 1."""
    return (1,) if manifest.target.options.get("names") == "rwkv-mobile" else ()


def _check_call(graph: Graph, manifest: Manifest, call: from_pte.Call, function: Function) -> None:
    """A method's tensors are the manifest's, in its order, and the model's but for the width of their numbers."""
    taken = {tensor.input: TensorType(tensor.dtype.upper(), tensor.shape) for tensor in manifest.state}
    given = {tensor.output: TensorType(tensor.dtype.upper(), tensor.shape) for tensor in manifest.state}
    tokens = TensorType(graph.input_dtype.upper(), (graph.tokens,))
    logits = TensorType("FLOAT32", (1, manifest.model.vocab))
    method = f"method {graph.function} of {graph.file}"
    for what, wanted, ports, model in (
        ("input", {graph.input: tokens, **taken}, call.inputs, function.inputs),
        ("output", {graph.output: logits, **given}, call.outputs, function.output_types()),
    ):
        if len(ports) != len(wanted):
            raise BadArtifact(f"{method} has {len(ports)} {what}s, the manifest {len(wanted)}", hint="export again")
        found = {name: port.type for name, port in zip(wanted, ports, strict=True)}
        for name, one, other in differences(wanted, found):
            raise BadArtifact(f"{what} {name} of {method} is {other}, the manifest says {one}", hint="export again")
        _check_model(what, method, ports, model)


def _check_model(what: str, method: str, ports: Sequence[from_pte.Port], model: Mapping[str, TensorType]) -> None:
    """An input that no operation reads is not the model's; every other tensor is, in shape and kind of number."""
    for port in ports:
        if port.name is None and what == "input":
            continue
        found = model.get(port.name or "")
        if found is None or (found.shape, found.dtype.kind) != (port.type.shape, port.type.dtype.kind):
            raise BadArtifact(
                f"{what} {port.name} of {method} is {port.type} there, {found or 'absent'} in its Core ML model",
                hint="export again",
            )
