"""ONNX Runtime's QNN execution provider: a Snapdragon's Hexagon NPU, and Qualcomm's emulator of it on x86 Linux."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import BadArtifact
from runtimes.manifest import Graph, Manifest
from runtimes.qnn import provider
from runtimes.qnn.chips import CHIPS
from runtimes.session import Run, Tensors, explicit_session

READS = (".onnx",)
DEVICES = ("htp-emulator", "htp")

DEVICE_SETTINGS = {"htp_performance_mode": "burst"}


def missing(device: str) -> str | None:
    """Whether the packages are installed, and this machine is one that has the processor, or the emulator."""
    if device == "htp-emulator":
        return provider.missing()
    if platform.machine().lower() not in ("aarch64", "arm64"):
        return f"a Hexagon NPU is part of a Snapdragon, this is {platform.machine()}; qnn:htp-emulator is its emulator"
    return provider.packages_missing()


def open_session(artifact: Artifact, device: str) -> Session:
    """Load the contexts; the emulator those of a single graph. Raises BadArtifact where QNN refuses one.

    Contexts that share their weights end the emulator's process, so that it compiles their graphs again.
    """
    manifest = artifact.manifest
    again = device == "htp-emulator" and len(manifest.graphs) > 1
    opened = [(graph, _load(artifact, graph, device, again=again)) for graph in manifest.graphs]
    runs = {graph.tokens: _run(session, graph, manifest) for graph, session in opened}
    return explicit_session(artifact, runs, lambda: _placement([session for _, session in opened], device))


def _load(artifact: Artifact, graph: Graph, device: str, *, again: bool) -> Any:
    soc = artifact.manifest.target.options.get("soc", "")
    if graph.compiled is None or soc not in CHIPS:
        raise BadArtifact(f"{artifact.folder.name} was not compiled for a Hexagon NPU", hint="export with -t qnn")
    path = artifact.folder / (graph.file if again else graph.compiled)
    settings = provider.compiling(CHIPS[soc]) if device == "htp-emulator" else DEVICE_SETTINGS
    entries = {"ep.share_ep_contexts": "1"} if device == "htp" and len(artifact.manifest.graphs) > 1 else {}
    try:
        return provider.session(path, settings, entries)
    except Exception as error:  # onnxruntime raises its own untyped family
        raise BadArtifact(f"QNN cannot load {path}: {error}", hint="export again") from error


def _run(session: Any, graph: Graph, manifest: Manifest) -> Run:
    inputs = [graph.input, *(tensor.input for tensor in manifest.state)]
    outputs = [graph.output, *(tensor.output for tensor in manifest.state)]
    for wanted, ports in ((inputs, session.get_inputs()), (outputs, session.get_outputs())):
        if odd := sorted(set(wanted).symmetric_difference(port.name for port in ports)):
            raise BadArtifact(f"{graph.file} and the manifest disagree about the port {odd[0]!r}", hint="export again")

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        feed = dict(zip(inputs, (tokens.astype(graph.input_dtype), *state), strict=True))
        logits, *new = session.run(outputs, feed)
        return logits, tuple(np.asarray(array) for array in new)

    return run


def _placement(sessions: Iterable[Any], device: str) -> Placement:
    """Nodes of each execution provider, of all graphs; a context is one."""
    nodes: Counter[str] = Counter()
    for session in sessions:
        nodes.update({name: counts.total() for name, counts in provider.assigned(session).items()})
    place = f"qnn:{device}" if set(nodes) == {provider.PROVIDER} else f"qnn:{'+'.join(sorted(nodes))}"
    return Placement(f"qnn:{device}", place, dict(nodes), "emulated" if device == "htp-emulator" else "run")
