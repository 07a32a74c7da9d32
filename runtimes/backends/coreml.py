"""Apple's own Core ML through coremltools, on macOS only: opens .mlpackage artifacts, explicit or MLState."""

from __future__ import annotations

import platform
import warnings
from collections import Counter
from typing import Any

import numpy as np

from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import BadArtifact
from runtimes.manifest import Graph, Manifest
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
    models = {graph.tokens: _load(artifact, graph, units) for graph in manifest.graphs}
    runs = {
        graph.tokens: (_stateful if held else _explicit)(models[graph.tokens], graph, manifest)
        for graph in manifest.graphs
    }
    return explicit_session(artifact, runs, lambda: _placement(models[1], units, device))


def _load(artifact: Artifact, graph: Graph, units: Any) -> Any:
    import coremltools as ct

    path = artifact.folder / graph.file
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "You will not be able to run predict", RuntimeWarning)
            model = ct.models.MLModel(str(path), compute_units=units, function_name=graph.function)
        model.get_compiled_model_path()  # raises where the constructor was content with a model that cannot run
    except Exception as error:  # coremltools raises RuntimeError, ValueError, protobuf's own and plain Exception
        raise BadArtifact(f"Core ML cannot load {path}: {error}", hint="export again") from error
    return model


def _explicit(model: Any, graph: Graph, manifest: Manifest) -> Run:
    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        feed = {tensor.input: array for tensor, array in zip(manifest.state, state, strict=True)}
        out = model.predict({graph.input: tokens.astype(graph.input_dtype), **feed})
        return out[graph.output], tuple(out[tensor.output].astype(tensor.dtype) for tensor in manifest.state)

    return run


def _stateful(model: Any, graph: Graph, manifest: Manifest) -> Run:
    """MLState is written before and read after each call, so that the session stays pure.

    Both copies count as time of the step, which an app that keeps its MLState does not spend.
    """

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        held = model.make_state()
        for tensor, array in zip(manifest.state, state, strict=True):
            held.write_state(tensor.input, array.astype(np.float32))
        out = model.predict({graph.input: tokens.astype(graph.input_dtype)}, state=held)
        new = tuple(np.asarray(held.read_state(tensor.output), tensor.dtype) for tensor in manifest.state)
        return out[graph.output], new

    return run


def _placement(model: Any, units: Any, device: str) -> Placement:
    """The step's operations per preferred device, from the compute plan; observed is what most of them prefer."""
    from coremltools.models.compute_plan import MLComputePlan

    plan = MLComputePlan.load_from_path(path=model.get_compiled_model_path(), compute_units=units)
    nodes: Counter[str] = Counter()
    for operation in plan.model_structure.program.functions[model.function_name or "main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is not None:
            nodes[PREFERRED[type(usage.preferred_compute_device).__name__]] += 1
    observed = nodes.most_common(1)[0][0] if nodes else "unknown"
    return Placement(f"coreml:{device}", f"coreml:{observed}", dict(nodes))
