"""ONNX Runtime on the CPU, alone or with kernels of our own, and on GPUs: opens .onnx artifacts with explicit state."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from runtimes import ort_cuda, ort_gpu, ort_graph, ort_profile, ort_runner, ort_webgpu, threads
from runtimes.agent.programs import Program
from runtimes.buffers import Pool, Slot
from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import BadArtifact, Missing
from runtimes.huge_pages import huge_pages
from runtimes.manifest import Graph, Manifest
from runtimes.native import build
from runtimes.native.rewrite import DOMAIN, rewrite
from runtimes.profile import Profile, decode, summarise
from runtimes.session import Run, Tensors, explicit_session

READS = (".onnx",)
DEVICES = ("cpu", "cpu-fused", "webgpu", "cuda")

GPUS: dict[str, ort_gpu.Finder] = {"webgpu": ort_webgpu, "cuda": ort_cuda}
PROVIDER = "CPUExecutionProvider"

SCRIPT = Path(ort_runner.__file__).with_name("cross-build.sh")
PROGRAM = Program("rwkv-step-ort", SCRIPT, devices=("cpu",), package="onnxruntime")
"""What steps such artifacts where there is no Python."""

UNITS = {"cpu": {"CPUExecutionProvider"}, "cpu-fused": {"CPUExecutionProvider", DOMAIN}}
EXTERNAL_DATA = "session.model_external_initializers_file_folder_path"


def missing(device: str) -> str | None:
    """Whether the package and the execution provider are installed, and find the device."""
    if device in GPUS:
        return GPUS[device].missing()
    if not find_spec("onnxruntime"):
        return "the Python package onnxruntime is not installed"
    return build.missing() if device == "cpu-fused" else None


def open_session(artifact: Artifact, device: str) -> Session:
    """Load every graph of the artifact; raises BadArtifact where ONNX Runtime refuses one, a GPU any node of one."""
    if device in GPUS:
        return ort_gpu.open_session(artifact, f"ort:{device}", GPUS[device].device())
    manifest = artifact.manifest
    files = dict.fromkeys(graph.file for graph in manifest.graphs)
    with huge_pages():
        loaded = {file: _load(artifact.folder / file, manifest, device) for file in files}
    pool = Pool([tensor.spec() for tensor in manifest.state])
    runs = {graph.tokens: _runner(loaded[graph.file], graph, manifest, pool) for graph in manifest.graphs}
    step = next(loaded[graph.file] for graph in manifest.graphs if graph.tokens == 1)
    return explicit_session(artifact, runs, lambda: _placement(step, device))


def profile(artifact: Artifact, device: str, steps: int) -> Profile:
    """Where a step's time goes, as ONNX Runtime's own profiler says; raises as `open_session`, and Missing for GPUs."""
    if device in GPUS:
        raise Missing(
            f"no profile for ort:{device}: ONNX Runtime times when a GPU's kernels are called, not how long they run"
        )
    manifest = artifact.manifest
    graph = next(graph for graph in manifest.graphs if graph.tokens == 1)
    pool = Pool([tensor.spec() for tensor in manifest.state])
    with tempfile.TemporaryDirectory() as folder:
        loaded = _load(artifact.folder / graph.file, manifest, device, trace=Path(folder) / "trace")
        run = _runner(loaded, graph, manifest, pool)
        seconds = decode(explicit_session(artifact, {1: run}, lambda: _placement(loaded, device)), steps)
        traces = ort_profile.read(Path(loaded.end_profiling()))[-steps:]
    return summarise(traces, seconds, around="inputs and outputs")


def _load(path: Path, manifest: Manifest, device: str, *, trace: Path | None = None) -> Any:
    """The graph's session; with `trace` it profiles itself into a file of that prefix."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if trace:
        options.enable_profiling, options.profile_file_prefix = True, str(trace)
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = threads.requested()
    options.add_session_config_entry(ort_graph.ASSIGNMENT, "1")
    model: Path | bytes = path
    if device == "cpu-fused":
        model = rewrite(path, manifest.model.version)
        options.register_custom_ops_library(str(build.library()))
        options.add_session_config_entry(EXTERNAL_DATA, str(path.parent))
    try:
        return onnxruntime.InferenceSession(model, options, providers=[PROVIDER])
    except Exception as error:  # onnxruntime raises its own untyped family
        raise BadArtifact(f"onnxruntime cannot load {path}: {error}", hint="export again") from error


def _runner(session: Any, graph: Graph, manifest: Manifest, pool: Pool) -> Run:
    inputs = [tensor.input for tensor in manifest.state]
    outputs = [tensor.output for tensor in manifest.state]
    shapes = {port.name: port.shape for port in session.get_inputs()}
    results = {port.name: port.shape for port in session.get_outputs()}
    ort_graph.check_ports(session, graph, manifest)
    leading = [1] * (len(shapes[graph.input]) - 1)
    dtype = np.dtype(graph.input_dtype)
    bindings: dict[tuple[int, int], Any] = {}  # by the addresses of a pair of slots: a decode loop has two

    def bound(before: Slot, after: Slot) -> Any:
        binding = session.io_binding()
        for name, array in zip(inputs, before, strict=True):
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in zip(outputs, after, strict=True):
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        before, after = pool.own(state), pool.take()
        key = (id(before[0]), id(after[0]))
        binding = bindings.get(key) or bindings.setdefault(key, bound(before, after))
        ids, logits = tokens.astype(dtype), np.empty(results[graph.output], np.float32)
        binding.bind_input(graph.input, "cpu", 0, dtype, [*leading, len(ids)], ids.ctypes.data)
        binding.bind_output(graph.output, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        session.run_with_iobinding(binding)
        return logits, after

    return run


def _placement(session: Any, device: str) -> Placement:
    """Nodes per execution provider, as ONNX Runtime assigned them; those that our kernels compute apart."""
    nodes = ort_graph.nodes(session, apart=DOMAIN)
    units = next((name for name, units in UNITS.items() if units == set(nodes)), "+".join(sorted(nodes)))
    return Placement(f"ort:{device}", f"ort:{units}", dict(nodes))
