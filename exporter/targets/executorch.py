"""ExecuTorch .pte programs for CPUs: XNNPACK, which takes the whole step as one delegate, and the portable kernels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from exporter import pte
from exporter.contract import Job, ModelSpec, Spelling, Target, Written
from runtimes.manifest import Precision

TARGETS = (
    Target(
        name="executorch-xnnpack",
        summary="ExecuTorch with XNNPACK kernels: Android, iOS and Linux CPUs",
        runtime="pte",
        device="cpu",
        precisions={"fp32": "fp32"},
        spelling=Spelling(norm="linear", head_norm="linear", reduce="linear", contract="multiply"),
        options=(pte.WEIGHTS_OPTION,),
        prefill=True,
    ),
    Target(
        name="executorch-portable",
        summary="ExecuTorch with its portable kernels: any CPU, also bare metal; slow",
        runtime="pte",
        device="cpu",
        precisions={"fp32": "fp32"},
        options=(pte.WEIGHTS_OPTION,),
        prefill=True,
    ),
)


def missing() -> str | None:
    """Everything it needs is a core dependency."""
    return None


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Every combination works."""


def export(job: Job, folder: Path) -> Written:
    """Lower the step to a program with a method for each number of tokens."""
    edge = _lowered(job)
    return pte.written(job, edge, folder, precision=Precision("float32", "float32"))


def _lowered(job: Job) -> Any:
    programs = pte.traced(job)
    if job.target.name == "executorch-portable":
        # Without this, every linear copies its transposed weight at every step.
        return pte.lowered(job, programs, preserve=(torch.ops.aten.linear.default,))
    return pte.lowered(job, programs, _xnnpack)


def _xnnpack() -> list[Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return [XnnpackPartitioner()]
