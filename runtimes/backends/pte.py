"""ExecuTorch: opens .pte artifacts with explicit state, by the wheel's Python bindings or by C++ of our own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from runtimes import openvino, qnn
from runtimes.agent.programs import Program
from runtimes.buffers import Pool
from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import Missing, RwkvExportError
from runtimes.huge_pages import huge_pages
from runtimes.manifest import Graph, Manifest
from runtimes.profile import Profile, decode
from runtimes.pte import plan, ports, wheel
from runtimes.pte import profile as profiling
from runtimes.pte.ports import Port
from runtimes.pte.runner import build, direct
from runtimes.session import Run, Tensors, explicit_session

READS = (".pte",)
DEVICES = ("cpu", "cpu-direct", "openvino", "htp-emulator", "vulkan", "webgpu", "mlx", "vgf", "ethos-u")

CPU, DIRECT, EMULATOR, OPENVINO = "cpu", "cpu-direct", "htp-emulator", "openvino"
ON_CPU = "XnnpackBackend"
"""The delegate that runs where ExecuTorch's own kernels do."""

DELEGATES = {
    OPENVINO: "OpenvinoBackend",
    EMULATOR: "QnnBackend",
    "vulkan": "VulkanBackend",
    "webgpu": "VulkanBackend",
    "mlx": "MLXBackend",
    "vgf": "VgfBackend",
    "ethos-u": "EthosUBackend",
}
"""What takes a program to a device."""

PROGRAM = Program("rwkv-step", build.SOURCE.with_name("cross-build.sh"), devices=(DIRECT,), package="executorch")
"""What steps such artifacts where there is no Python."""


def missing(device: str) -> str | None:
    """Whether the package is installed and can run the device's delegate."""
    if find_spec("executorch") is None:
        return "the Python package executorch is not installed"
    if device == DIRECT:
        return build.missing()
    if device == EMULATOR:
        return qnn.missing()
    if device == OPENVINO and (reason := openvino.missing()):
        return reason
    if device in DELEGATES and DELEGATES[device] not in wheel.delegates():
        return f"this executorch was built without the delegate {DELEGATES[device]}"
    return None


def open_session(artifact: Artifact, device: str) -> Session:
    """Load every method of the artifact; raises BadArtifact where ExecuTorch refuses one, Missing for its delegate."""
    manifest, pool = artifact.manifest, Pool([tensor.spec() for tensor in artifact.manifest.state])
    calls = {file: plan.calls(artifact.folder / file) for file in {graph.file for graph in manifest.graphs}}
    programs: dict[str, _Program] = {}

    def close() -> None:
        for program in programs.values():
            program.close()

    try:
        with huge_pages():
            for file, called in calls.items():
                programs[file] = _open(artifact, file, called, device)
            runs = {graph.tokens: _runner(programs[graph.file], graph, manifest, pool) for graph in manifest.graphs}
        return explicit_session(artifact, runs, lambda: _placement(manifest, calls, device), close)
    except RwkvExportError:
        close()
        raise


def profile(artifact: Artifact, device: str, steps: int) -> Profile:
    """Where a step's time goes, as ExecuTorch's event tracer says; raises as `open_session`."""
    if device == DIRECT:
        raise Missing(f"no profile for pte:{DIRECT}: it runs without an event tracer", hint="profile pte:cpu")
    manifest = artifact.manifest
    graph = next(graph for graph in manifest.graphs if graph.tokens == 1)
    names = plan.instructions(artifact.folder / graph.file)
    calls = {method: Counter(called.values()) for method, called in names.items()}
    program = wheel.Program(*_files(artifact, graph.file, calls, device), traced=True)
    run = _runner(program, graph, manifest, Pool([tensor.spec() for tensor in manifest.state]))
    with closing(explicit_session(artifact, {1: run}, lambda: Placement("pte", "pte"), program.close)) as session:
        seconds = decode(session, steps)
        return profiling.read(program.program, names[_name(graph)], seconds)


class _Method(Protocol):
    """ports: as ports.check takes them."""

    ports: list[Port]

    def step(self, ids: Array, before: Sequence[Array], after: Sequence[Array], logits: Array) -> None: ...


class _Program(Protocol):
    def method(self, name: str) -> _Method: ...
    def close(self) -> None: ...


def _open(artifact: Artifact, file: str, calls: dict[str, Counter[str]], device: str) -> _Program:
    opened = direct.Program if device == DIRECT else wheel.Program
    return opened(*_files(artifact, file, calls, device))


def _files(artifact: Artifact, file: str, calls: dict[str, Counter[str]], device: str) -> tuple[Path, Path | None]:
    """The program and its weights where those are separate; raises Missing where the device lacks a delegate."""
    if device == EMULATOR:
        qnn.prepare_emulator(artifact.manifest)
    if device == OPENVINO:
        openvino.keep_float32()
    able = {ON_CPU} if device == DIRECT else wheel.delegates()
    if lacking := sorted({name for each in calls.values() for name in _delegates(each)} - able):
        raise Missing(f"{file} needs the delegate {lacking[0]}, which pte:{device} does not have")
    weights = Path(file).with_suffix(".ptd").as_posix()
    separate = any(each.path == weights for each in artifact.manifest.files)
    return artifact.folder / file, artifact.folder / weights if separate else None


def _runner(program: _Program, graph: Graph, manifest: Manifest, pool: Pool) -> Run:
    method = program.method(_name(graph))
    ports.check(method.ports, graph, manifest)
    logits_type = method.ports[1].dtype

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        before, after = pool.own(state), pool.take()
        logits = np.empty(manifest.model.vocab, logits_type)
        method.step(tokens, before, after, logits)
        return logits, after

    return run


def _name(graph: Graph) -> str:
    return graph.function or "forward"


def _delegates(calls: Collection[str]) -> set[str]:
    """Operators have a namespace, "aten::embedding"; delegates have none."""
    return {name for name in calls if "::" not in name}


def _placement(manifest: Manifest, calls: dict[str, dict[str, Counter[str]]], device: str) -> Placement:
    """Calls of the step, read from the program: those a delegate takes, and operators that stay outside by name."""
    step = next(graph for graph in manifest.graphs if graph.tokens == 1)
    nodes = calls[step.file][_name(step)]
    unit = _observed(_delegates(nodes) - {ON_CPU}, device)
    evidence: Literal["run", "emulated"] = "emulated" if unit == EMULATOR else "run"
    return Placement(f"pte:{device}", f"pte:{unit}", dict(nodes), evidence)


def _observed(elsewhere: set[str], device: str) -> str:
    """Where a program runs whose delegates beside the CPU's are these."""
    if not elsewhere:
        return device if device in (CPU, DIRECT) else CPU
    if elsewhere == {DELEGATES.get(device)}:
        return device
    names = {delegate: name for name, delegate in reversed(DELEGATES.items())}
    return "+".join(sorted(names.get(delegate, delegate) for delegate in elsewhere))
