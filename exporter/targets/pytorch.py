"""The step as a torch.export program (.pt2), stepped by PyTorch itself: for servers, and as a baseline."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from exporter import graph, ports
from exporter.contract import Job, Target, Written
from exporter.quiet import quiet
from runtimes.manifest import Graph, Precision

TARGETS = (
    Target(
        name="torch",
        summary="PyTorch itself (.pt2), on CPU or CUDA",
        runtime="eager",
        device="cpu",
        precisions={"fp32": "fp32"},
        prefill=True,
    ),
)


def missing() -> str | None:
    """Everything it needs is a core dependency."""
    return None


def export(job: Job, folder: Path) -> Written:
    """Write decode.pt2 and one prefill{n}.pt2 a size; each file holds the weights."""
    import torch

    graph.load_weights(job.model, job.progress)
    named, graphs = ports.own(job.spec), []
    for tokens in (1, *job.prefill):
        name = "decode" if tokens == 1 else f"prefill{tokens}"
        with job.progress(f"tracing and writing {name}"), quiet():
            program = graph.trace(job.model, graph.arguments(job.spec, tokens))
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # it says where we were built
            torch.export.save(program, folder / f"{name}.pt2")
        graphs.append(Graph(tokens, f"{name}.pt2", named.tokens, "int64", named.logits))
    return Written(tuple(graphs), named.state, Precision("float32", "float32"), {"torch": version("torch")})
