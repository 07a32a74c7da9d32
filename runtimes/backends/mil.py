"""Core ML packages on the processor, by our numpy interpreter; says nothing about speed or placement on Apple hardware.

Half precision is rounded after every operation and accumulates in float32; see runtimes/mil/precision.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import BadArtifact, did_you_mean
from runtimes.manifest import Graph, Manifest, StateTensor
from runtimes.mil import protobuf
from runtimes.mil.evaluate import Evaluator
from runtimes.mil.package import Package
from runtimes.mil.program import Function
from runtimes.mil.types import TensorType, differences
from runtimes.session import Tensors, explicit_session

READS = (".mlpackage",)
DEVICES = ("cpu",)


def missing(device: str) -> str | None:
    """Reading packages needs coremltools' protobuf schema, not the package's converters."""
    if protobuf.generated_files() is None:
        return "the Python package coremltools is not installed"
    return None


def open_session(artifact: Artifact, device: str) -> Session:
    """Load every graph of the artifact; raises BadArtifact where package and manifest disagree."""
    package = functools.cache(lambda file: Package(artifact.folder / file))
    manifest = artifact.manifest
    runs = {
        graph.tokens: _Run(graph, manifest.state, _evaluator(graph, manifest, package(graph.file)))
        for graph in manifest.graphs
    }
    operations = sum(len(run.evaluator.function.operations) for run in runs.values())
    placement = Placement(f"mil:{device}", "mil:cpu", {"MIL ops": operations}, evidence="interpreted")
    return explicit_session(artifact, runs, lambda: placement)


@dataclass(frozen=True)
class _Run:
    """One graph; a state tensor whose input and output are one port is kept by the package, the others are tensors."""

    graph: Graph
    state: Sequence[StateTensor]
    evaluator: Evaluator

    def __call__(self, tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        inputs = {self.graph.input: tokens.astype(self.graph.input_dtype)}
        states: dict[str, Array] = {}
        for tensor, value in zip(self.state, state, strict=True):
            (states if tensor.input == tensor.output else inputs)[tensor.input] = value
        outputs, states = self.evaluator.run(inputs, states)
        after = {**outputs, **states}
        return outputs[self.graph.output], tuple(after[tensor.output] for tensor in self.state)


def _evaluator(graph: Graph, manifest: Manifest, package: Package) -> Evaluator:
    function = package.function(graph.function)
    _check_ports(graph, manifest, function)
    return Evaluator(function, package.weights)


def _check_ports(graph: Graph, manifest: Manifest, function: Function) -> None:
    """Names, types and shapes of the manifest's ports are the function's; the logits may have any element type."""
    outputs = function.output_types()
    if graph.output not in outputs:
        raise BadArtifact(f"{graph.file} has no output {graph.output}", hint=did_you_mean(graph.output, outputs))
    states: dict[str, TensorType] = {}
    taken: dict[str, TensorType] = {}
    given: dict[str, TensorType] = {}
    for tensor in manifest.state:
        port = TensorType(tensor.dtype.upper(), tensor.shape)
        if tensor.input == tensor.output:
            states[tensor.input] = port
        else:
            taken[tensor.input] = given[tensor.output] = port
    taken[graph.input] = TensorType(graph.input_dtype.upper(), (graph.tokens,))
    given[graph.output] = TensorType(outputs[graph.output].element, (1, manifest.model.vocab))
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
