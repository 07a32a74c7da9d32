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
from runtimes.mil.scoped import outside
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

    units = getattr(ct.ComputeUnit, UNITS[device])
    models = {graph.tokens: _Chain(artifact, graph, units) for graph in artifact.manifest.graphs}
    runs = {graph.tokens: _run(models[graph.tokens], graph, artifact) for graph in artifact.manifest.graphs}
    return explicit_session(artifact, runs, lambda: _placement(models[1], units, device))


class _Chain:
    """A graph's models in turn, nearly always one: what a model gives those after it take, by name."""

    def __init__(self, artifact: Artifact, graph: Graph, units: Any) -> None:
        paths = [artifact.folder / file for file in (graph.file, *graph.then)]
        self.models = [_load(path, graph.function, units) for path in paths]
        self.functions = [Package(path).function(graph.function) for path in paths]
        self.names = [outside(artifact.manifest, graph, number) for number, _ in enumerate(paths, 1)]
        self.shape = self.functions[0].inputs[graph.input].shape

    def predict(self, feed: dict[str, Array], held: dict[str, Array]) -> dict[str, Array]:
        """All that the models gave, and the state that they hold after the call.

        That state is written before and read after each call, so that the session stays pure. Both copies count as time
        of the step, which an app that keeps its MLState does not spend.
        """
        values = dict(feed)
        for model, function, outer in zip(self.models, self.functions, self.names, strict=True):
            taken, kept = {name: values[outer(name)] for name in function.inputs}, {}
            if function.states:
                state = model.make_state()
                for name in function.states:
                    state.write_state(name, held[outer(name)].astype(np.float32))
                given = model.predict(taken, state=state)
                kept = {name: np.asarray(state.read_state(name)) for name in function.states}
            else:
                given = model.predict(taken)
            values |= {outer(name): array for name, array in {**given, **kept}.items()}
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


def _run(chain: _Chain, graph: Graph, artifact: Artifact) -> Run:
    manifest, table = artifact.manifest, lookup.open_table(artifact, graph)

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        feed = {graph.input: lookup.fed(graph, table, tokens).reshape(chain.shape)}
        feed |= lookup.masks(graph, tokens, manifest.state[0].dtype)
        held: dict[str, Array] = {}
        for tensor, array in zip(manifest.state, state, strict=True):
            (held if tensor.input == tensor.output else feed)[tensor.input] = array
        out = chain.predict(feed, held)
        logits = lookup.joined(graph, out, manifest.model.vocab)
        return logits, tuple(np.asarray(out[tensor.output], tensor.dtype) for tensor in manifest.state)

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
