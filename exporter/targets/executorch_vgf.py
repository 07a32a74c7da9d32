"""ExecuTorch .pte programs for Arm GPUs with ML extensions: TOSA graphs that Arm's converter turned into VGF files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch

from exporter import pte
from exporter.contract import Job, ModelSpec, Target, Written
from exporter.passes.edge_fold import folded
from runtimes.manifest import Precision

TARGETS = (
    Target(
        name="executorch-vgf",
        summary="ExecuTorch with VGF: Arm GPUs through the ML extensions for Vulkan",
        runtime="pte",
        device="vgf",
        precisions={"fp32": "fp32"},
        prefill=True,
    ),
)

PROFILE = "TOSA-1.0+FP"
VARIABLE = "MODEL_CONVERTER_PATH"


def missing() -> str | None:
    """The TOSA serializer, and a converter that starts on this machine."""
    if not find_spec("executorch"):
        return "the Python package executorch is not installed"
    if not find_spec("tosa_serializer"):
        return "the Python package tosa-tools is not installed (pip install --no-deps tosa-tools)"
    converter = _converter()
    if not converter:
        return "Arm's model-converter is not on the PATH: `pip install ai-ml-sdk-model-converter` brings it"
    return _refusal(converter)


def _converter() -> str | None:
    """Arm's program where the delegate looks for it, or beside the interpreter, where pip puts it."""
    if named := os.environ.get(VARIABLE):
        return shutil.which(named)
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    return shutil.which("model-converter", path=places)


def _refusal(converter: str) -> str | None:
    """What the converter says where it does not start, as one that wants a newer C library does not."""
    command = [converter, "--version"]
    try:
        ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{converter} does not start: {error}"
    said = (ran.stderr or ran.stdout).strip().splitlines()[:1]
    return f"{converter} does not start: {' '.join(said)}" if ran.returncode else None


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Every combination works."""


def export(job: Job, folder: Path) -> Written:
    """Lower the step to TOSA and each TOSA graph to VGF."""
    from executorch.backends.arm.vgf import VgfCompileSpec, VgfPartitioner

    os.environ.setdefault(VARIABLE, _converter() or "")
    programs = folded(pte.traced(job, ids=torch.int32))
    edge = pte.lowered(job, programs, lambda: [VgfPartitioner(VgfCompileSpec(PROFILE))])
    precision = Precision("float32", "float32")
    return pte.written(job, edge, folder, precision=precision, ids=torch.int32, tools=("tosa-tools",))
