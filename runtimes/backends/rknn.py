"""Rockchip's NPUs: the toolkit's simulator, in an environment of its own, and boards with RKNN Toolkit Lite 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec

import numpy as np

from runtimes import lookup
from runtimes import rknn as toolchain
from runtimes.agent.session import MODULE, AgentSession
from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import BadArtifact
from runtimes.manifest import Graph
from runtimes.session import Run, Tensors, explicit_session

READS = (".onnx",)
DEVICES = ("simulator", "npu")

Call = Callable[[Mapping[str, Array]], list[Array]]
"""Inputs by name -> outputs in the order of the graph."""


def missing(device: str) -> str | None:
    """Whether the toolkit's environment is set up, or this is a board with the packages for one."""
    if device == "npu":
        if find_spec("rknnlite"):
            return None
        return "the Python package rknn-toolkit-lite2, which is for boards with a Rockchip NPU, is not installed"
    return toolchain.missing()


def open_session(artifact: Artifact, device: str) -> Session:
    """Load the compiled graphs onto the NPU; for the simulator build them again; raises BadArtifact.

    Where the toolkit is not importable, the session is one in the environment that has it.
    """
    manifest, place = artifact.manifest, f"rknn:{device}"
    soc = manifest.target.options.get("soc", "")
    if any(graph.compiled is None for graph in manifest.graphs) or not soc.startswith("rk"):
        raise BadArtifact(f"{artifact.folder.name} was not compiled for a Rockchip NPU", hint="export with -t rknn")
    if device == "simulator" and not find_spec(toolchain.TOOLKIT):
        command, env = toolchain.process(MODULE)
        return AgentSession(command, folder=str(artifact.folder.resolve()), place=place, env=env)
    opened = {graph.tokens: _OPEN[device](artifact, graph, soc) for graph in manifest.graphs}
    runs = {graph.tokens: _run(opened[graph.tokens][0], artifact, graph) for graph in manifest.graphs}
    _, observed, units = opened[1]
    placement = Placement(place, observed, units, "emulated" if device == "simulator" else "run")
    return explicit_session(artifact, runs, lambda: placement)


def _simulated(artifact: Artifact, graph: Graph, soc: str) -> tuple[Call, str, Mapping[str, int]]:
    """What the simulator runs was built anew: only where the shipped file came of it again, did it run the artifact."""
    from runtimes.rknn import toolkit

    built = toolkit.simulate(artifact.folder / graph.file, artifact.folder / str(graph.compiled), soc=soc)
    return built, "rknn:simulator" if built.same else "rknn:simulator of another build", built.units


def _on_npu(artifact: Artifact, graph: Graph, soc: str) -> tuple[Call, str, Mapping[str, int]]:
    from rknnlite.api import RKNNLite

    path, names = (
        artifact.folder / str(graph.compiled),
        [graph.input, *(tensor.input for tensor in artifact.manifest.state)],
    )
    lite = RKNNLite()
    if lite.load_rknn(str(path)) or lite.init_runtime():
        raise BadArtifact(f"this board's NPU refuses {path}", hint=f"it was compiled for {soc}: is this one?")

    def call(tensors: Mapping[str, Array]) -> list[Array]:
        made = lite.inference(inputs=[tensors[name] for name in names], data_format=["nchw"] * len(names))
        return list(made)

    return call, "rknn:npu", {}


_OPEN = {"simulator": _simulated, "npu": _on_npu}


def _run(call: Call, artifact: Artifact, graph: Graph) -> Run:
    manifest, table = artifact.manifest, lookup.open_table(artifact, graph)

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        rows = lookup.fed(graph, table, tokens).astype(np.float32)
        names = [tensor.input for tensor in manifest.state]
        logits, *new = call({graph.input: rows, **dict(zip(names, state, strict=True))})
        shaped = (array.reshape(tensor.shape) for array, tensor in zip(new, manifest.state, strict=True))
        return logits.reshape(1, -1), tuple(shaped)

    return run
