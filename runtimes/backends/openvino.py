"""OpenVINO on a processor, an Intel GPU or an Intel NPU: opens its own format, with explicit state."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from runtimes import openvino, threads
from runtimes.buffers import Pool, Slot
from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import BadArtifact, Missing
from runtimes.manifest import Graph, Manifest
from runtimes.session import Run, Tensors, explicit_session

READS = (".xml",)
DEVICES = ("cpu", "gpu", "npu")

ARITHMETIC = {"cpu": "f32", "gpu": "f32", "npu": "f16"}  # an NPU has nothing wider
ROUNDED = 32  # activations that share a scale where weights are compressed
CONSTANTS = ("Const", "Input", "Output")


def missing(device: str) -> str | None:
    """Whether the package and a driver for the device are there."""
    if reason := openvino.absent():
        return reason
    if device == "cpu":
        return None
    found = openvino.core().available_devices
    if any(_plain(name) == device for name in found):
        return None
    return f"OpenVINO finds no {device.upper()} with a driver on this machine, it finds {', '.join(found)}"


def open_session(artifact: Artifact, device: str) -> Session:
    """Compile every graph for the device; raises BadArtifact where OpenVINO refuses one, Missing without a device."""
    if reason := missing(device):
        raise Missing(reason)
    core, manifest = openvino.core(), artifact.manifest
    compiled = {graph.tokens: _compiled(core, artifact, graph, device) for graph in manifest.graphs}
    pool = Pool([tensor.spec() for tensor in manifest.state])
    runs = {graph.tokens: _run(compiled[graph.tokens], graph, manifest, pool) for graph in manifest.graphs}
    return explicit_session(artifact, runs, lambda: _placement(compiled[1], device))


def _compiled(core: Any, artifact: Artifact, graph: Graph, device: str) -> Any:
    settings = {"INFERENCE_PRECISION_HINT": ARITHMETIC[device], "PERFORMANCE_HINT": "LATENCY"}
    if device == "cpu":
        settings |= {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads.requested())}
        settings |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": str(ROUNDED)}
    path = artifact.folder / graph.file
    try:
        model = core.read_model(path, artifact.folder / openvino.WEIGHTS)
        return core.compile_model(model, device.upper(), settings)
    except Exception as error:  # OpenVINO raises RuntimeError and its own
        said = str(error).strip().splitlines()[-1] if str(error) else type(error).__name__
        raise BadArtifact(f"OpenVINO cannot load {path}: {said}", hint="export again") from error


def _run(compiled: Any, graph: Graph, manifest: Manifest, pool: Pool) -> Run:
    from openvino import Tensor

    wanted = {graph.input, *(tensor.input for tensor in manifest.state)}
    made = {graph.output, *(tensor.output for tensor in manifest.state)}
    for names, found in ((wanted, compiled.inputs), (made, compiled.outputs)):
        if odd := sorted(names.symmetric_difference(port.any_name for port in found)):
            raise BadArtifact(f"{graph.file} and the manifest disagree about the port {odd[0]!r}", hint="export again")
    requests: dict[tuple[int, int], Any] = {}  # by the addresses of a pair of slots: a decode loop has two

    def bound(before: Slot, after: Slot) -> Any:
        request = compiled.create_infer_request()
        for tensor, given, taken in zip(manifest.state, before, after, strict=True):
            request.set_tensor(tensor.input, Tensor(given, shared_memory=True))
            request.set_tensor(tensor.output, Tensor(taken, shared_memory=True))
        return request

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        before, after = pool.own(state), pool.take()
        key = (id(before[0]), id(after[0]))
        request = requests.get(key) or requests.setdefault(key, bound(before, after))
        request.set_tensor(graph.input, Tensor(tokens.astype(graph.input_dtype)))
        request.start_async()
        request.wait()
        return np.array(request.get_tensor(graph.output).data), after

    return run


def _placement(compiled: Any, device: str) -> Placement:
    """Where it runs, and operations by the type that they compute in, as OpenVINO says of what it compiled."""
    devices = "+".join(sorted({_plain(name) for name in compiled.get_property("EXECUTION_DEVICES")}))
    nodes: Counter[str] = Counter()
    for operation in compiled.get_runtime_model().get_ops():
        about = operation.get_rt_info()
        if _text(about, "layerType") not in CONSTANTS:
            nodes[f"{devices.upper()} {_text(about, 'runtimePrecision')}"] += 1
    return Placement(f"openvino:{device}", f"openvino:{devices}", dict(nodes))


def _text(about: Any, key: str) -> str:
    return str(about[key].value) if key in about else "unknown"


def _plain(name: str) -> str:
    """ "GPU.1" as "gpu"."""
    return name.partition(".")[0].lower()
