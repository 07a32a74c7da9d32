"""ExecuTorch .pte programs for WebGPU, in browsers and outside: Vulkan's compiler, another runtime; compiled here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch

from exporter import pte
from exporter.contract import Job, ModelSpec, Target, Written
from exporter.passes.edge_fold import folded
from exporter.passes.torch_prepare import for_vulkan
from runtimes.manifest import Precision

TARGETS = (
    Target(
        name="executorch-webgpu",
        summary="ExecuTorch with WebGPU: browsers and desktop GPUs",
        runtime="pte",
        device="webgpu",
        precisions={"fp32": "fp32"},
        prefill=True,
    ),
)


def missing() -> str | None:
    """The delegate's compiler is a part of the executorch package since 1.5."""
    if not find_spec("executorch"):
        return "the Python package executorch is not installed"
    if not find_spec("executorch.backends.webgpu"):
        return "the Python package executorch has no WebGPU compiler (executorch.backends.webgpu): it needs 1.5"
    return None


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Every combination works."""


def export(job: Job, folder: Path) -> Written:
    """Lower the step by the rules of Vulkan, which are all the rules that this delegate's compiler has."""
    from executorch.backends.webgpu.partitioner import WebGPUPartitioner

    programs = folded(for_vulkan(pte.traced(job, ids=torch.int32)))
    edge = pte.lowered(job, programs, lambda: [WebGPUPartitioner()])
    return pte.written(job, edge, folder, precision=Precision("float32", "float32"), ids=torch.int32, usage={})
