"""The step as a torch.export program (.pt2), stepped by PyTorch itself: for servers, and as a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from exporter import archive, graph, ports
from exporter.contract import Job, ModelSpec, Target, Written
from exporter.passes import torch_half
from exporter.quiet import quiet
from runtimes.manifest import Graph, Precision

TARGETS = (
    Target(
        name="torch",
        summary="PyTorch itself (.pt2), on CPU or CUDA",
        runtime="eager",
        device="cpu",
        precisions={"fp32": "fp32", "fp16": "fp16", "bf16": "bf16"},
        prefill=True,
        also_runs=("eager:cuda",),
    ),
)

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def missing() -> str | None:
    """Everything it needs is a core dependency."""
    return None


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Every combination works."""


def export(job: Job, folder: Path) -> Written:
    """Write decode.pt2 and one prefill{n}.pt2 a size; each file holds the weights."""
    named, graphs, stored = ports.own(job.spec), [], TYPES[job.precision]
    if stored != torch.float32:
        named = torch_half.halve(job.model, named, stored)
    graph.load_weights(job.model, job.progress)
    for tokens in (1, *job.prefill):
        name = "decode" if tokens == 1 else f"prefill{tokens}"
        with job.progress(f"tracing and writing {name}"), quiet():
            program = graph.trace(job.model, named.arguments(tokens))
            archive.save(program, folder / f"{name}.pt2")
        graphs.append(Graph(tokens, f"{name}.pt2", named.tokens, "int64", named.logits))
    name = str(stored).removeprefix("torch.")
    kept = () if stored == torch.float32 else (torch_half.KEPT,)
    return Written(tuple(graphs), named.state, Precision(name, name, kept), {"torch": version("torch")})
