"""Apple's Core AI: on a Mac its CPU, GPU and Neural Engine, elsewhere Apple's interpreter, which shows numbers only."""

from __future__ import annotations

import asyncio
import hashlib
import platform
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import BadArtifact, did_you_mean
from runtimes.manifest import Graph, Manifest
from runtimes.qnn import muted
from runtimes.session import Run, Tensors, explicit_session

READS = (".aimodel",)
DEVICES = ("cpu", "gpu", "ane")

Ports = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape of tensors by their names."""

BYTECODE, DIGEST = "main.mlirb", "main.hash"  # of an .aimodel


def missing(device: str) -> str | None:
    """The interpreter runs on any processor; a GPU or a Neural Engine is the operating system's to lend."""
    if find_spec("coreai") is None:
        return "the Python package coreai-core is not installed (pip install 'rwkv-export[coreai]')"
    if device == "cpu":
        return None
    if platform.system() != "Darwin":
        return "Core AI has a GPU and a Neural Engine on macOS only; coreai:cpu is Apple's interpreter anywhere"
    from coreai.runtime import SpecializationOptions

    if not SpecializationOptions.is_supported():
        return "Core AI's own runtime is not used; it needs macOS 27 and USE_OS_COREAI=1 in the environment"
    return None


def open_session(artifact: Artifact, device: str) -> Session:
    """Load every function for `device`; raises BadArtifact where Core AI refuses one, or the manifest differs."""
    manifest = artifact.manifest
    models: dict[str, Model] = {}
    with ExitStack() as opened:
        for file in sorted({graph.file for graph in manifest.graphs}):
            models[file] = Model(artifact.folder / file, device)
            opened.callback(models[file].close)
        runs = {graph.tokens: _run(models[graph.file], graph, manifest) for graph in manifest.graphs}
        placed = _placement(models[manifest.graphs[0].file], device)
        return explicit_session(artifact, runs, lambda: placed, opened.pop_all().close)


class Model:
    """An .aimodel kept loaded by a thread of its own, so that callers need no event loop, and may be in one.

    Off a Mac, Core AI lowers the model into a temporary folder, which lives until `close`.
    """

    def __init__(self, path: Path, device: str) -> None:
        self.path, self.device = path, device
        _require_whole(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="coreai")
        self._runner = self._thread.submit(asyncio.Runner).result()
        try:
            with muted():
                self._open()
        except Exception as error:  # Core AI raises RuntimeError, ValueError and MLIRError
            self._stop()
            raise BadArtifact(f"Core AI cannot load {path}: {_first_line(error)}", hint="export again") from error
        except BaseException:
            self._stop()
            raise

    def _open(self) -> None:
        from coreai.authoring.asset import AIModelAsset

        self.options = _options(self.device)
        asset = AIModelAsset.load(self.path)
        summary = asset.summary(include_statistics=False)
        if not summary or not summary.function_names:  # to lower such a program would end the process
            raise ValueError("its program cannot be read")
        self._context = asset.executable(self.options)
        self._model = self.wait(self._context.__aenter__())
        self.functions = {name: self._model.load_function(name) for name in self._model.function_names}

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What the coroutine returns, run in the model's thread."""
        return self._thread.submit(self._runner.run, coroutine).result()

    def close(self) -> None:
        """Release the model and its folder."""
        self.functions = {}
        del self._model
        self.wait(self._context.__aexit__(None, None, None))
        self._stop()

    def _stop(self) -> None:
        self._thread.submit(self._runner.close).result()
        self._thread.shutdown()


def _require_whole(path: Path) -> None:
    """Core AI keeps a hash beside its program, and does not look at it."""
    try:
        found = hashlib.sha256((path / BYTECODE).read_bytes()).digest()
        wanted = (path / DIGEST).read_bytes()
    except OSError as error:
        raise BadArtifact(f"{path} is not a whole .aimodel: {error}", hint="export again") from error
    if found != wanted:
        raise BadArtifact(f"{path / BYTECODE} does not match the hash in {DIGEST}", hint="export again")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _options(device: str) -> Any:
    """What a Mac's runtime is told to use; None for the interpreter, which cannot be told anything."""
    from coreai.runtime import SpecializationOptions

    if not SpecializationOptions.is_supported():
        return None
    if device == "cpu":
        return SpecializationOptions.cpu_only()
    from coreai.runtime import ComputeUnitKind

    kind = ComputeUnitKind.gpu() if device == "gpu" else ComputeUnitKind.neural_engine()
    return SpecializationOptions.from_preferred_compute_unit_kind(kind)


def _placement(model: Model, device: str) -> Placement:
    """Where it runs as far as Core AI tells: it knows what it may not use, not what it used."""
    if model.options is None:
        return Placement(f"coreai:{device}", "coreai:cpu", evidence="emulated")
    allowed = len(model.options.allowed_compute_unit_kinds)
    return Placement(f"coreai:{device}", "coreai:cpu" if allowed == 1 else "coreai:unknown")


def _run(model: Model, graph: Graph, manifest: Manifest) -> Run:
    name = graph.function or "main"
    if name not in model.functions:
        raise BadArtifact(f"{graph.file} has no function {name}", hint=did_you_mean(name, model.functions))
    function = model.functions[name]
    _check_ports(graph, manifest, function.desc)
    held = any(tensor.input == tensor.output for tensor in manifest.state)
    return (_held if held else _explicit)(model, function, graph, manifest)


def _explicit(model: Model, function: Any, graph: Graph, manifest: Manifest) -> Run:
    from coreai.runtime import NDArray

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        feed = {tensor.input: NDArray(array) for tensor, array in zip(manifest.state, state, strict=True)}
        feed[graph.input] = NDArray(tokens.astype(graph.input_dtype))
        out = model.wait(function(feed))
        return _array(out[graph.output]), tuple(_array(out[tensor.output]) for tensor in manifest.state)

    return run


def _held(model: Model, function: Any, graph: Graph, manifest: Manifest) -> Run:
    """State that is written in place is copied before each call, so that the session stays pure.

    The copy counts as time of the step, which an app that keeps its state does not spend.
    """
    from coreai.runtime import NDArray

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        kept = {tensor.input: NDArray(array.copy()) for tensor, array in zip(manifest.state, state, strict=True)}
        out = model.wait(function({graph.input: NDArray(tokens.astype(graph.input_dtype))}, kept))
        return _array(out[graph.output]), tuple(_array(kept[tensor.output]) for tensor in manifest.state)

    return run


def _array(made: Any) -> Array:
    """A copy: what comes out lies in the runtime's memory."""
    return np.array(made.numpy())


class Descriptor(Protocol):
    """What Core AI says of a function's tensor."""

    shape: list[int | None]
    dtype: str


def _check_ports(graph: Graph, manifest: Manifest, found: Any) -> None:
    """Names, types and shapes of the manifest's ports are the function's; logits are of any type of float."""
    inputs: Ports = {graph.input: (graph.input_dtype, (graph.tokens,))}
    outputs: Ports = {}
    states: Ports = {}
    for tensor in manifest.state:
        port = (tensor.dtype, tensor.shape)
        if tensor.input == tensor.output:
            states[tensor.input] = port
        else:
            inputs[tensor.input], outputs[tensor.output] = port, port
    logits = found.output_descriptor(graph.output).dtype if graph.output in found.output_names else "float32"
    outputs[graph.output] = (logits, (1, manifest.model.vocab))
    for what, wanted, names, describe in (
        ("input", inputs, found.input_names, found.input_descriptor),
        ("state", states, found.state_names, found.state_descriptor),
        ("output", outputs, found.output_names, found.output_descriptor),
    ):
        there = {name: _port(describe(name)) for name in names}
        for name in sorted({*wanted, *there}):
            if wanted.get(name) != there.get(name):
                raise BadArtifact(
                    f"{what} {name} of {graph.file} is {there.get(name) or 'absent'}, "
                    f"the manifest says {wanted.get(name) or 'absent'}",
                    hint="export again",
                )


def _port(descriptor: Descriptor) -> tuple[str, tuple[int, ...]]:
    return descriptor.dtype, tuple(size or 0 for size in descriptor.shape)
