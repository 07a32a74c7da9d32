"""Where a browser can run a graph: its places, what a device lacks for each, and what is too large; it runs nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from runtimes.contract import Artifact, Placement
from runtimes.errors import BadArtifact, WrongCall
from validation.serve.device import GIB, Device
from validation.serve.wire import Opened

MOST_THREADS = 4
"""Of the place that is tried without being asked for; ONNX Runtime's own choice ends there too."""
LARGEST_FILE = 0x7FE00000
"""Bytes of an ArrayBuffer in Chrome (onnxruntime.ai/docs/tutorials/web/large-models.html)."""
COPIES = 2
"""A file is in memory as it was downloaded and as ONNX Runtime keeps it."""

PROVIDERS = {
    "wasm": "CPUExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "webnn": "WebNNExecutionProvider",
}
NAME = re.compile(r"web:(?:(wasm)-([1-9]\d?)|(webgpu)|(webnn)-(cpu|gpu|npu))")


@dataclass(frozen=True)
class Place:
    """One way to run in a browser.

    name:     "web:wasm-4", "web:webgpu", "web:webnn-npu"
    provider: "wasm", "webgpu" or "webnn"
    device:   what WebNN is asked for, else ""
    threads:  of the wasm module
    software: the device computes on the CPU, in place of a GPU
    """

    name: str
    provider: str
    device: str = ""
    threads: int = 1
    software: bool = False

    def observed(self, opened: Opened) -> Placement:
        """Where the graph ran by what the page saw: nodes by provider, threads, and the devices WebNN tells of."""
        mine = PROVIDERS[self.provider]
        ran = {
            "wasm": f"web:wasm-{opened.threads}",
            "webgpu": "web:webgpu",
            "webnn": "-".join(["web:webnn", *sorted(set(opened.devices))]),
        }[self.provider]
        elsewhere = sorted(set(opened.nodes) - {mine})
        where = "+".join([ran] * (mine in opened.nodes) + elsewhere) or "web:unknown"
        return Placement(self.name, where, opened.nodes, "emulated" if self.software else "run")


def parse(name: str) -> Place:
    """The place called `name`; raises WrongCall."""
    match = NAME.fullmatch(name)
    if not match:
        raise WrongCall(
            f"a browser has no place {name!r}",
            hint="there are web:wasm-1, web:wasm-4 and other numbers of threads, web:webgpu, web:webnn-cpu, -gpu, -npu",
        )
    wasm, threads, webgpu, webnn, device = match.groups()
    return Place(name, wasm or webgpu or webnn, device or "", int(threads or 1))


def usual(device: Device) -> tuple[Place, ...]:
    """What is tried where nothing was asked for: all there is, also what the device may turn out to lack."""
    threads = min(MOST_THREADS, device.cores)
    names = ["web:wasm-1", *([f"web:wasm-{threads}"] if threads > 1 else [])]
    return tuple(map(parse, [*names, "web:webgpu", "web:webnn-cpu", "web:webnn-gpu", "web:webnn-npu"]))


def on(device: Device, place: Place) -> Place:
    """The place as this device has it: a GPU of software is WebNN's GPU too."""
    gpu = place.provider == "webgpu" or place.device == "gpu"
    return replace(place, software=bool(gpu and device.adapter and device.adapter.software))


def lacking(place: Place, device: Device) -> str | None:
    """Why this browser has no such place, as a sentence, or None."""
    if place.threads > 1 and not device.isolated:
        return "the page may not share memory between threads here: it needs HTTPS or localhost"
    if place.provider == "webgpu" and device.adapter is None:
        return f"this browser gives no WebGPU adapter: {device.no_adapter or 'it does not say why'}"
    if place.provider == "webnn":
        return device.webnn.get(place.device, "this browser has no WebNN") or None
    return None


@dataclass(frozen=True)
class Demands:
    """What an artifact asks of a browser, read from its files once.

    files:  bytes of each file that the page loads, by its path
    tensor: bytes of the largest weight
    free:   a graph's shapes are not fixed
    """

    files: Mapping[str, int]
    tensor: int
    free: bool
    half: bool


def demands(artifact: Artifact) -> Demands:
    """Raises BadArtifact where a browser cannot load such graphs at all."""
    import onnx

    manifest = artifact.manifest
    for graph in manifest.graphs:
        if not graph.file.endswith(".onnx") or graph.lookup or graph.then:
            raise BadArtifact(
                f"{artifact.folder} holds {graph.file}; a browser loads .onnx graphs",
                hint="export with -t onnx-cpu -O graphs=each",
            )
    others = {manifest.tokenizer.file, manifest.initial_state, "README.md"}
    largest = 0
    for name in {graph.file for graph in manifest.graphs}:
        try:
            stored = onnx.load(artifact.folder / name, load_external_data=False).graph.initializer
        except Exception as error:  # protobuf's own family, which is not onnx's
            raise BadArtifact(f"{artifact.folder / name} is not an ONNX graph: {error}", hint="export again") from error
        largest = max([largest, *(_bytes(tensor.dims, tensor.data_type) for tensor in stored)])
    return Demands(
        files={file.path: file.bytes for file in manifest.files if file.path not in others},
        tensor=largest,
        free=any(graph.up_to for graph in manifest.graphs),
        half=manifest.precision.compute == "float16",
    )


def refused(place: Place, device: Device, wanted: Demands) -> str | None:
    """Why this device cannot run such an artifact there, as a sentence, or None."""
    largest = max(wanted.files.values())
    if largest > LARGEST_FILE:
        return f"a file of {_gib(largest)} is more than the {_gib(LARGEST_FILE)} that a browser holds in one piece"
    needed = COPIES * sum(wanted.files.values())
    if device.memory and needed > device.memory * GIB:
        return f"loading takes {_gib(needed)} of memory, the browser tells of {device.memory:g} GiB"
    if wanted.free and place.provider != "wasm":
        return (
            f"{place.provider} wants fixed shapes, these graphs take any number of tokens: export with -O graphs=each"
        )
    if place.provider == "webgpu" and device.adapter:
        if wanted.tensor > device.adapter.max_buffer:
            most = _gib(device.adapter.max_buffer)
            return f"the largest weight has {_gib(wanted.tensor)}, a buffer of this GPU at most {most}"
        if wanted.half and not device.adapter.half:
            return "the graph computes in float16, which this GPU's adapter lacks (shader-f16)"
    return None


def _bytes(dims: Sequence[int], kind: int) -> int:
    """At least as many as a weight has: types of less than a byte count as one."""
    from onnx import helper

    return math.prod(dims) * helper.tensor_dtype_to_np_dtype(kind).itemsize


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"
