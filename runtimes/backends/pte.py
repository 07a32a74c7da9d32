"""ExecuTorch on the CPU: opens .pte artifacts with explicit state through the wheel's own runtime."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import IO, Any

from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import BadArtifact
from runtimes.manifest import Graph
from runtimes.session import Run, Tensors, explicit_session

READS = (".pte",)
DEVICES = ("cpu",)


def missing(device: str) -> str | None:
    """Whether the package is installed."""
    return None if find_spec("executorch") else "the Python package executorch is not installed"


def open_session(artifact: Artifact, device: str) -> Session:
    """Load every method of the artifact; raises BadArtifact where ExecuTorch refuses one."""
    loaded = {graph.tokens: _load(artifact, graph) for graph in artifact.manifest.graphs}
    runs = {tokens: _runner(method) for tokens, (_, method) in loaded.items()}
    # A method is only valid while its program is: `loaded` lives until the session is closed.
    return explicit_session(artifact, runs, lambda: _placement(artifact, device), loaded.clear)


def _load(artifact: Artifact, graph: Graph) -> tuple[Any, Any]:
    """The program and its method. What the runtime logs meanwhile is told only if it fails."""
    with tempfile.TemporaryFile() as log:
        try:
            with _standard_error_to(log):
                from executorch.runtime import Runtime, Verification

                program = Runtime.get().load_program(artifact.folder / graph.file, verification=Verification.Minimal)
                return program, program.load_method(graph.function or "forward")
        except RuntimeError as error:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()[-1:]
            raise BadArtifact(f"executorch cannot load {graph.file}: {' '.join([str(error), *said])}") from error


@contextmanager
def _standard_error_to(file: IO[bytes]) -> Iterator[None]:
    """Native code writes to file descriptor 2, which Python's redirect_stderr does not move."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def _runner(method: Any) -> Run:
    import torch

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        logits, *new = method.execute([torch.from_numpy(tokens), *map(torch.from_numpy, state)])
        return logits.numpy(), tuple(tensor.numpy() for tensor in new)

    return run


def _placement(artifact: Artifact, device: str) -> Placement:
    """Calls of the step, read from the program: those a delegate takes, and operators that stay outside by name.

    Delegates for processors run where the portable kernels do, so that `nodes` alone tells them apart.
    """
    from executorch.exir._serialize._program import deserialize_pte_binary

    graph = next(graph for graph in artifact.manifest.graphs if graph.tokens == 1)
    program = deserialize_pte_binary((artifact.folder / graph.file).read_bytes()).program
    plan = next(plan for plan in program.execution_plan if plan.name == (graph.function or "forward"))
    nodes: Counter[str] = Counter()
    for instruction in plan.chains[0].instructions:
        call = instruction.instr_args
        if hasattr(call, "delegate_index"):
            nodes[plan.delegates[call.delegate_index].id] += 1
        elif hasattr(call, "op_index"):
            nodes[plan.operators[call.op_index].name] += 1
    return Placement(f"pte:{device}", f"pte:{device}", dict(nodes))
