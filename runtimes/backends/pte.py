"""ExecuTorch on the CPU: opens .pte artifacts with explicit state through the wheel's own runtime."""

from __future__ import annotations

from collections import Counter
from typing import Any

from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import BadArtifact
from runtimes.manifest import Graph
from runtimes.session import Run, Tensors, explicit_session

READS = (".pte",)
DEVICES = ("cpu",)


def missing(device: str) -> str | None:
    """Whether the package with its native runtime is installed."""
    try:
        import executorch.runtime  # noqa: F401
    except ImportError as error:
        return f"the Python package executorch cannot be imported ({error})"
    return None


def open_session(artifact: Artifact, device: str) -> Session:
    """Load every method of the artifact; raises BadArtifact where ExecuTorch refuses one."""
    from executorch.runtime import Runtime, Verification

    methods = {}
    for graph in artifact.manifest.graphs:
        try:
            program = Runtime.get().load_program(artifact.folder / graph.file, verification=Verification.Minimal)
            methods[graph.tokens] = (program, program.load_method(graph.function or "forward"))
        except RuntimeError as error:
            raise BadArtifact(f"executorch cannot load {graph.file}: {error}", hint="export again") from error
    runs = {tokens: _runner(method) for tokens, (_, method) in methods.items()}
    return explicit_session(artifact, runs, lambda: _placement(artifact, artifact.manifest.graphs[0], device))


def _runner(method: Any) -> Run:
    import torch

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        logits, *new = method.execute([torch.from_numpy(tokens), *map(torch.from_numpy, state)])
        return logits.numpy(), tuple(tensor.numpy() for tensor in new)

    return run


def _placement(artifact: Artifact, graph: Graph, device: str) -> Placement:
    """Calls of the step, read from the program: those a delegate takes, and operators that stay outside by name."""
    from executorch.exir._serialize._program import deserialize_pte_binary

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
