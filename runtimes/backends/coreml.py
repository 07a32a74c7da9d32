"""Apple's own Core ML through coremltools, on macOS only: opens .mlpackage artifacts, explicit or MLState."""

from __future__ import annotations

import platform
from collections import Counter
from typing import Any

import numpy as np

from runtimes.contract import Array, Artifact, Placement, Session
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
    """Compile and load every function of the package for `device`."""
    import coremltools as ct

    manifest, units = artifact.manifest, getattr(ct.ComputeUnit, UNITS[device])
    runs, models = {}, []
    for graph in manifest.graphs:
        path = str(artifact.folder / graph.file)
        model = ct.models.MLModel(path, compute_units=units, function_name=graph.function)
        models.append(model)
        held = any(tensor.input == tensor.output for tensor in manifest.state)
        runs[graph.tokens] = (_stateful if held else _explicit)(model, graph, manifest)
    return explicit_session(artifact, runs, lambda: _placement(models[0], units, device))


def _explicit(model: Any, graph: Graph, manifest: Manifest) -> Run:
    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        feed = {tensor.input: array for tensor, array in zip(manifest.state, state, strict=True)}
        out = model.predict({graph.input: tokens.astype(np.int32), **feed})
        return out[graph.output], tuple(out[tensor.output].astype(tensor.dtype) for tensor in manifest.state)

    return run


def _stateful(model: Any, graph: Graph, manifest: Manifest) -> Run:
    """MLState is written before and read after each call, so that the session stays pure."""

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        held = model.make_state()
        for tensor, array in zip(manifest.state, state, strict=True):
            held.write_state(tensor.input, array.astype(np.float32))
        out = model.predict({graph.input: tokens.astype(np.int32)}, state=held)
        new = tuple(np.asarray(held.read_state(tensor.output), tensor.dtype) for tensor in manifest.state)
        return out[graph.output], new

    return run


def _placement(model: Any, units: Any, device: str) -> Placement:
    """Operations per preferred device, from the compute plan; observed is the device most of them prefer."""
    from coremltools.models.compute_plan import MLComputePlan

    plan = MLComputePlan.load_from_path(path=model.get_compiled_model_path(), compute_units=units)
    nodes: Counter[str] = Counter()
    for function in plan.model_structure.program.functions.values():
        for operation in function.block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is not None:
                nodes[PREFERRED[type(usage.preferred_compute_device).__name__]] += 1
    observed = nodes.most_common(1)[0][0] if nodes else "unknown"
    return Placement(f"coreml:{device}", f"coreml:{observed}", dict(nodes))
