"""Apple's own Core ML through coremltools, on macOS only: opens .mlpackage artifacts, explicit or MLState."""

from __future__ import annotations

import platform
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from runtimes import lookup
from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import BadArtifact
from runtimes.manifest import Graph
from runtimes.mil.package import Package
from runtimes.session import Run, Tensors, explicit_session

READS = (".mlpackage",)
DEVICES = ("cpu", "gpu", "ane")

UNITS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}
PREFERRED = {"MLCPUComputeDevice": "cpu", "MLGPUComputeDevice": "gpu", "MLNeuralEngineComputeDevice": "ane"}


def missing(device: str) -> str | None:
    """Core ML exists on macOS only; the Neural Engine on Apple silicon only."""
    if platform.system() != "Darwin":
        return "Core ML runs on macOS only; mil:cpu interprets the same package anywhere"
    if device == "ane" and platform.machine() != "arm64":
        return "this Mac has no Neural Engine"
    try:
        import coremltools  # noqa: F401
    except ImportError:
        return "the Python package coremltools is not installed"
    return None


def open_session(artifact: Artifact, device: str) -> Session:
    """Compile and load every function of the package for `device`; raises BadArtifact where Core ML refuses one."""
    import coremltools as ct

    manifest, units = artifact.manifest, getattr(ct.ComputeUnit, UNITS[device])
    held = any(tensor.input == tensor.output for tensor in manifest.state)
    models = {graph.tokens: _Chain(artifact, graph, units) for graph in manifest.graphs}
    runs = {
        graph.tokens: (_stateful if held else _explicit)(models[graph.tokens], graph, artifact)
        for graph in manifest.graphs
    }
    return explicit_session(artifact, runs, lambda: _placement(models[1], units, device))


class _Chain:
    """A graph's models in turn, nearly always one: what a model gives those after it take, by name."""

    def __init__(self, artifact: Artifact, graph: Graph, units: Any) -> None:
        paths = [artifact.folder / file for file in (graph.file, *graph.then)]
        self.models = [_load(path, graph.function, units) for path in paths]
        functions = [Package(path).function(graph.function) for path in paths]
        self.takes = [set(function.inputs) for function in functions]
        self.shape = functions[0].inputs[graph.input].shape

    def predict(self, feed: dict[str, Array], **held: Any) -> dict[str, Array]:
        """All that the models gave; `held` goes to every model."""
        values = dict(feed)
        for model, names in zip(self.models, self.takes, strict=True):
            values |= model.predict({name: values[name] for name in names}, **held)
        return values


def _load(path: Path, function: str | None, units: Any) -> Any:
    import coremltools as ct

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "You will not be able to run predict", RuntimeWarning)
            model = ct.models.MLModel(str(path), compute_units=units, function_name=function)
        model.get_compiled_model_path()  # raises where the constructor was content with a model that cannot run
    except Exception as error:  # coremltools raises RuntimeError, ValueError, protobuf's own and plain Exception
        raise BadArtifact(f"Core ML cannot load {path}: {error}", hint="export again") from error
    return model


def _explicit(chain: _Chain, graph: Graph, artifact: Artifact) -> Run:
    manifest, table = artifact.manifest, lookup.open_table(artifact, graph)

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        feed = {tensor.input: array for tensor, array in zip(manifest.state, state, strict=True)}
        out = chain.predict({graph.input: lookup.fed(graph, table, tokens).reshape(chain.shape), **feed})
        logits = lookup.joined(graph, out, manifest.model.vocab)
        return logits, tuple(out[tensor.output].astype(tensor.dtype) for tensor in manifest.state)

    return run


def _stateful(chain: _Chain, graph: Graph, artifact: Artifact) -> Run:
    """MLState is written before and read after each call, so that the session stays pure.

    Both copies count as time of the step, which an app that keeps its MLState does not spend.
    """
    manifest = artifact.manifest

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        held = chain.models[0].make_state()  # one package has all of it
        for tensor, array in zip(manifest.state, state, strict=True):
            held.write_state(tensor.input, array.astype(np.float32))
        out = chain.predict({graph.input: tokens.astype(graph.input_dtype).reshape(chain.shape)}, state=held)
        new = tuple(np.asarray(held.read_state(tensor.output), tensor.dtype) for tensor in manifest.state)
        return out[graph.output], new

    return run


def _placement(chain: _Chain, units: Any, device: str) -> Placement:
    """The step's operations per preferred device, from the compute plans; observed is what most of them prefer."""
    from coremltools.models.compute_plan import MLComputePlan

    nodes: Counter[str] = Counter()
    for model in chain.models:
        plan = MLComputePlan.load_from_path(path=model.get_compiled_model_path(), compute_units=units)
        for operation in plan.model_structure.program.functions[model.function_name or "main"].block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is not None:
                nodes[PREFERRED[type(usage.preferred_compute_device).__name__]] += 1
    observed = nodes.most_common(1)[0][0] if nodes else "unknown"
    return Placement(f"coreml:{device}", f"coreml:{observed}", dict(nodes))
