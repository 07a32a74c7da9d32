"""ONNX Runtime on a GPU: states stay there from call to call, token ids and logits travel; it knows no GPU by name.

Calls that come back with the same tensors, as those of a decode loop do, are recorded once and then replayed whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtimes import ort_graph, threads
from runtimes.buffers import Pool, Slot
from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import BadArtifact
from runtimes.manifest import Graph, Manifest
from runtimes.session import Tensors, explicit_session

MOST_RECORDED = 8
"""Pairs of states whose call is recorded: each recording holds buffers of its own on some devices."""
LEFT_TO_CPU = ("fallback to CPU EP has been explicitly disabled", "nodes have not been partitioned to")
"""What ONNX Runtime says of a graph that a GPU takes not all of, without calls to be recorded and with."""
GRAPH, NOT_RECORDED = "gpu_graph_id", "-1"
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


@dataclass(frozen=True)
class Gpu:
    """One device of one execution provider.

    provider: "WebGpuExecutionProvider"
    unit:     provider and device as results name them
    add:      makes a session of these options use it
    new:      an uninitialised tensor there, of a shape and a type
    write:    copies an array into such a tensor
    emulated: whether the processor plays the device
    """

    provider: str
    unit: str
    add: Callable[[Any], None]
    new: Callable[[tuple[int, ...], Any], Any]
    write: Callable[[Any, Array], None]
    emulated: bool = False


class Finder(Protocol):
    """A module that finds the GPU of one provider."""

    def missing(self) -> str | None:
        """Why there is none, as a sentence, or None."""

    def device(self) -> Gpu:
        """The first one."""


def open_session(artifact: Artifact, place: str, gpu: Gpu) -> Session:
    """Load every graph of the artifact onto the GPU; raises BadArtifact where it cannot take all of one."""
    manifest = artifact.manifest
    files = dict.fromkeys(graph.file for graph in manifest.graphs)
    loaded = {file: load(artifact.folder / file, gpu) for file in files}
    pool = Pool(
        [tensor.spec() for tensor in manifest.state],
        lambda spec: gpu.new(spec.shape, np.dtype(spec.dtype)),
        gpu.write,
    )
    runs = {graph.tokens: _Runner(loaded[graph.file], graph, manifest, pool, gpu) for graph in manifest.graphs}
    step = next(loaded[graph.file] for graph in manifest.graphs if graph.tokens == 1)
    return explicit_session(artifact, runs, lambda: _placement(step, place, gpu), fetch=_fetched)


def load(path: Path, gpu: Gpu) -> Any:
    """The graph's session, no node of which is left to the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    options.intra_op_num_threads = threads.requested()
    options.add_session_config_entry(ort_graph.ASSIGNMENT, "1")
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    gpu.add(options)
    try:
        session = onnxruntime.InferenceSession(path, options, enable_fallback=0)  # else to a session on the CPU
    except Exception as error:  # onnxruntime raises its own untyped family
        if not any(words in str(error) for words in LEFT_TO_CPU):
            raise BadArtifact(f"{gpu.provider} cannot load {path}: {error}", hint="export again") from error
        raise BadArtifact(
            f"{gpu.provider} leaves nodes of {path} to the CPU, which would hide what the GPU does",
            hint="export with -t onnx-webgpu, whose graphs it takes whole",
        ) from error
    if gpu.provider not in session.get_providers():
        raise BadArtifact(f"onnxruntime gave {path} to {session.get_providers()}, not to {gpu.provider}")
    return session


class _Runner:
    """A graph with bindings of its own to the states of a pool."""

    def __init__(self, session: Any, graph: Graph, manifest: Manifest, pool: Pool, gpu: Gpu) -> None:
        ort_graph.check_ports(session, graph, manifest)
        self._session, self._graph, self._pool, self._gpu = session, graph, pool, gpu
        self._inputs = [tensor.input for tensor in manifest.state]
        self._outputs = [tensor.output for tensor in manifest.state]
        takes = {port.name: port for port in session.get_inputs()}[graph.input]
        gives = {port.name: port for port in session.get_outputs()}[graph.output]
        if gives.type not in TYPES or not all(isinstance(size, int) for size in (*takes.shape, *gives.shape)):
            raise BadArtifact(f"{graph.file} has inputs or outputs of no fixed shape", hint="add -O graphs=each")
        self._dtype = np.dtype(graph.input_dtype)
        self._shape = tuple(takes.shape)
        self._ids, self._logits = gpu.new(self._shape, self._dtype), gpu.new(tuple(gives.shape), TYPES[gives.type])
        self._bindings: dict[tuple[int, int], Any] = {}  # by the addresses of a pair of slots: a decode loop has two
        self._calls: Counter[tuple[int, int]] = Counter()
        self._recorded: dict[tuple[int, int], Any] = {}

    def __call__(self, tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        before, after = self._pool.own(state), self._pool.take()
        key = (id(before[0]), id(after[0]))
        binding = self._bindings.get(key) or self._bindings.setdefault(key, self._bound(before, after))
        self._gpu.write(self._ids, tokens.astype(self._dtype).reshape(self._shape))
        self._session.run_with_iobinding(binding, self._options(key))
        return self._logits.numpy(), after

    def _bound(self, before: Slot, after: Slot) -> Any:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._graph.input, self._ids)
        binding.bind_ortvalue_output(self._graph.output, self._logits)
        for name, tensor in zip(self._inputs, before, strict=True):
            binding.bind_ortvalue_input(name, tensor)
        for name, tensor in zip(self._outputs, after, strict=True):
            binding.bind_ortvalue_output(name, tensor)
        return binding

    def _options(self, key: tuple[int, int]) -> Any:
        """Record a call when its tensors come back."""
        self._calls[key] += 1
        if key not in self._recorded:
            room = self._calls[key] > 1 and len(self._recorded) < MOST_RECORDED
            if not room:
                return _run_options(NOT_RECORDED)
            self._recorded[key] = _run_options(str(len(self._recorded) + 1))
        return self._recorded[key]


def _run_options(recording: str) -> Any:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry(GRAPH, recording)
    return options


def _fetched(tensor: Any) -> Array:
    return tensor if isinstance(tensor, np.ndarray) else np.asarray(tensor.numpy())


def _placement(session: Any, place: str, gpu: Gpu) -> Placement:
    found = ort_graph.nodes(session)
    alone = set(found) == {gpu.provider}
    named: Mapping[str, int] = {gpu.unit if name == gpu.provider else name: count for name, count in found.items()}
    observed = place if alone else f"ort:{'+'.join(sorted(found))}"
    return Placement(place, observed, named, evidence="emulated" if gpu.emulated else "run")
