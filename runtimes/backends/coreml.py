"""Apple's own Core ML through coremltools, on macOS only: opens .mlpackage artifacts, explicit or MLState."""

from __future__ import annotations

import platform
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from runtimes.contract import Artifact, Placement, Session
from runtimes.core_ml import Chain, most, preferred, runner
from runtimes.errors import BadArtifact
from runtimes.session import explicit_session

READS = (".mlpackage",)
DEVICES = ("cpu", "gpu", "ane")

UNITS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}


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
    graphs = artifact.manifest.graphs
    models = {graph.tokens: Chain(artifact, graph, partial(_load, units=units)) for graph in graphs}
    runs = {graph.tokens: runner(models[graph.tokens], graph, artifact) for graph in graphs}
    return explicit_session(artifact, runs, lambda: _placement(models[1], units, device))


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


def _placement(chain: Chain, units: Any, device: str) -> Placement:
    """The step's operations per preferred device, from the compute plans; observed is what most of them prefer."""
    from coremltools.models.compute_plan import MLComputePlan

    nodes: Counter[str] = Counter()
    for model in chain.models:
        plan = MLComputePlan.load_from_path(path=model.get_compiled_model_path(), compute_units=units)
        nodes += preferred(plan, model.function_name or "main")
    return Placement(f"coreml:{device}", f"coreml:{most(nodes)}", dict(nodes))
