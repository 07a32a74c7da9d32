"""ExecuTorch .pte programs for GPUs through Vulkan: Android phones; compiled here, run by an app built with Vulkan."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch

from exporter import pte
from exporter.contract import Job, ModelSpec, Spelling, Target, Written
from exporter.passes.edge_fold import folded
from exporter.passes.torch_prepare import for_vulkan, with_half_fills
from runtimes.manifest import Kept, Precision

TARGETS = (
    Target(
        name="executorch-vulkan",
        summary="ExecuTorch with Vulkan: GPUs of Android phones",
        runtime="pte",
        device="vulkan",
        precisions={"fp32": "fp32", "fp16": "fp16"},
        spelling=Spelling(l2_eps=1e-7, block=8),
        prefill=True,
    ),
)


def missing() -> str | None:
    """The delegate's compiler is a part of the executorch package."""
    return None if find_spec("executorch") else "the Python package executorch is not installed"


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Every combination works."""


def export(job: Job, folder: Path) -> Written:
    """Lower the step to a program whose weights and arithmetic are float16 for fp16, its inputs and outputs float32."""
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    half = job.precision == "fp16"
    job = with_half_fills(job) if half else job
    programs = folded(for_vulkan(pte.traced(job, ids=torch.int32)))
    edge = pte.lowered(job, programs, lambda: [VulkanPartitioner({"force_fp16": half})])
    dtype = "float16" if half else "float32"
    kept = (Kept("state between calls", "float32", "the program's own type"),) if half else ()
    return pte.written(job, edge, folder, precision=Precision(dtype, dtype, kept), ids=torch.int32)
