"""ExecuTorch .pte programs that hold TOSA graphs, the operator set of Arm's compilers; made for no device in itself."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from exporter import pte
from exporter.contract import Job, ModelSpec, Target, Written
from exporter.passes.edge_fold import folded
from runtimes.manifest import Precision

TARGETS = (
    Target(
        name="executorch-tosa",
        summary="ExecuTorch with TOSA graphs, as Arm's GPU and NPU compilers take them; runs in its reference model",
        runtime="tosa",
        device="reference",
        precisions={"fp32": "fp32"},
        prefill=True,
    ),
)
PROFILE = "TOSA-1.0+FP"


def missing() -> str | None:
    """The delegate writes graphs with a serialiser that comes with the reference model."""
    absent = "the Python package tosa-tools is not installed (pip install --no-deps tosa-tools)"
    return None if find_spec("tosa_serializer") else absent


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Every combination works."""


def export(job: Job, folder: Path) -> Written:
    """Lower every method to one TOSA graph."""
    programs = folded(pte.traced(job, ids=torch.int32))
    edge = pte.lowered(job, programs, _partitioners)
    precision = Precision("float32", "float32")
    return pte.written(job, edge, folder, precision=precision, ids=torch.int32, tools=("tosa-tools",), usage={})


def _partitioners() -> list[Any]:
    from executorch.backends.arm.tosa.compile_spec import TosaCompileSpec
    from executorch.backends.arm.tosa.partitioner import TOSAPartitioner

    return [TOSAPartitioner(TosaCompileSpec(PROFILE))]
