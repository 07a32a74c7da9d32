"""ONNX Runtime on the CPU: opens .onnx artifacts with explicit state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import BadArtifact
from runtimes.manifest import Graph, Manifest
from runtimes.session import Run, Tensors, explicit_session

READS = (".onnx",)
DEVICES = ("cpu",)

PROVIDERS = {"cpu": "CPUExecutionProvider"}


def missing(device: str) -> str | None:
    """Whether the package and the execution provider are installed."""
    try:
        import onnxruntime
    except ImportError:
        return "the Python package onnxruntime is not installed"
    provider = PROVIDERS[device]
    return None if provider in onnxruntime.get_available_providers() else f"this onnxruntime has no {provider}"


def open_session(artifact: Artifact, device: str) -> Session:
    """Load every graph of the artifact; raises BadArtifact where ONNX Runtime refuses one."""
    manifest = artifact.manifest
    loaded = {graph.tokens: _load(artifact.folder / graph.file, device) for graph in manifest.graphs}
    runs = {graph.tokens: _runner(loaded[graph.tokens], graph, manifest) for graph in manifest.graphs}
    return explicit_session(artifact, runs, lambda: _placement(loaded[1], device))


def _load(path: Path, device: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        return onnxruntime.InferenceSession(path, options, providers=[PROVIDERS[device]])
    except Exception as error:  # onnxruntime raises its own untyped family
        raise BadArtifact(f"onnxruntime cannot load {path}: {error}", hint="export again") from error


def _runner(session: Any, graph: Graph, manifest: Manifest) -> Run:
    names = [tensor.input for tensor in manifest.state]
    outputs = [graph.output, *(tensor.output for tensor in manifest.state)]
    shapes = {port.name: port.shape for port in session.get_inputs()}
    _same_ports(graph, [graph.input, *names], shapes)
    _same_ports(graph, outputs, [port.name for port in session.get_outputs()])
    wanted = shapes[graph.input]
    dtype = np.dtype(graph.input_dtype)

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        feed = dict(zip(names, state, strict=True))
        feed[graph.input] = tokens.astype(dtype).reshape(wanted)
        logits, *new = session.run(outputs, feed)
        return logits, tuple(new)

    return run


def _same_ports(graph: Graph, wanted: Collection[str], found: Collection[str]) -> None:
    if odd := sorted(set(wanted).symmetric_difference(found)):
        raise BadArtifact(f"{graph.file} and the manifest disagree about the port {odd[0]!r}", hint="export again")


def _placement(session: Any, device: str) -> Placement:
    """Nodes per execution provider, as ONNX Runtime assigned them."""
    nodes: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        nodes[part.ep_name] += len(part.get_nodes())
    own = set(nodes) == {PROVIDERS[device]}
    return Placement(f"ort:{device}", f"ort:{device}" if own else f"ort:{'+'.join(sorted(nodes))}", dict(nodes))
