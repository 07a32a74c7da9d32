"""TOSA graphs on Arm's reference model, taken out of the .pte as a delegate is given them; says nothing of speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import BadArtifact
from runtimes.manifest import Graph, Manifest
from runtimes.pte import ports
from runtimes.pte.ports import TYPES, Port
from runtimes.pte.program import Program
from runtimes.session import Tensors, explicit_session

READS = (".pte",)
DEVICES = ("reference",)

DELEGATE = "TOSABackend"
PACKAGES = {"executorch": "executorch", "tosa_reference_model": "--no-deps tosa-tools"}
"""Modules, and what to give pip for them."""


def missing(device: str) -> str | None:
    """Whether the reference model is installed, and what reads programs."""
    for module, package in PACKAGES.items():
        if find_spec(module) is None:
            return f"the Python package {package.split()[-1]} is not installed (pip install {package})"
    return None


def open_session(artifact: Artifact, device: str) -> Session:
    """Take every method's graph out; raises BadArtifact for methods that are more than one call of a TOSA graph."""
    manifest = artifact.manifest
    programs = {file: Program(artifact.folder / file) for file in {graph.file for graph in manifest.graphs}}
    runs = {graph.tokens: _call(programs[graph.file], graph, manifest) for graph in manifest.graphs}
    placement = Placement(f"tosa:{device}", "tosa:reference", {DELEGATE: 1}, evidence="emulated")
    return explicit_session(artifact, runs, lambda: placement)


@dataclass(frozen=True)
class _Call:
    """One TOSA graph and how a method calls it.

    data:    the serialised graph
    ids:     numpy name of the token ids' type
    inputs:  for each input of the graph, which of the method's inputs it is
    outputs: for each output of the method, which of the graph's outputs it is
    """

    data: bytes
    ids: str
    inputs: Sequence[int]
    outputs: Sequence[int]

    def __call__(self, tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        import tosa_reference_model as model

        given = [tokens.astype(self.ids), *state]
        made, status = model.run(self.data, [given[index] for index in self.inputs], verbosity="LOW")
        if status != model.GraphStatus.TOSA_VALID:
            raise BadArtifact(f"the TOSA reference model refuses the graph: {status.name}", hint="export again")
        logits, *new = (made[index] for index in self.outputs)
        return logits, tuple(new)


def _call(program: Program, graph: Graph, manifest: Manifest) -> _Call:
    """The one call that the graph's method consists of, its ports checked against the manifest."""
    method = graph.function or "forward"
    plan, values = program.plan(method), program.arguments(method, DELEGATE)
    inputs, outputs = list(plan.inputs), list(plan.outputs)
    found = [_port(plan.values[number]) for number in (inputs[0], outputs[0], *inputs[1:])]
    ports.check(found, graph, manifest)
    taken, made = values[: -len(outputs)], values[-len(outputs) :]
    if not set(taken) <= set(inputs) or set(made) != set(outputs):
        raise BadArtifact(f"method {method} passes its TOSA graph more than the method's own tensors")
    order = tuple(map(inputs.index, taken)), tuple(map(made.index, outputs))
    return _Call(program.blob(method), graph.input_dtype, *order)


def _port(value: Any) -> Port:
    tensor = value.val
    dtype = TYPES.get(int(tensor.scalar_type), tensor.scalar_type.name)
    size = 1
    for length in tensor.sizes:
        size *= length
    return Port(dtype, size * {"int64": 8, "float16": 2}.get(dtype, 4))
