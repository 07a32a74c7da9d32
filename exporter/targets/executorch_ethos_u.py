"""ExecuTorch .pte programs for Arm's Ethos-U85, compiled by Arm's vela; no simulator of it can be installed by pip."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from exporter import pte
from exporter.calibration import passage
from exporter.contract import Job, ModelSpec, Option, Spelling, Target, Written
from exporter.passes.edge_fold import folded
from exporter.passes.pt2e import quantised
from exporter.quiet import quiet
from runtimes.errors import WrongCall
from runtimes.manifest import Kept, Precision

NPUS = ("ethos-u85-256", "ethos-u85-128", "ethos-u85-512", "ethos-u85-1024", "ethos-u85-2048")
TARGETS = (
    Target(
        name="executorch-ethos-u",
        summary="ExecuTorch with Ethos-U85, the NPU of Arm's microcontrollers and small boards; compiled only",
        runtime="pte",
        device="ethos-u",
        precisions={"a16w8": "int8"},
        spelling=Spelling(l2_eps=1e-7),
        options=(Option("npu", NPUS, NPUS[0], "the accelerator, by its multiply-accumulates a cycle"),),
        calibrated=("a16w8",),
    ),
)
CALIBRATION = 256  # tokens
PACKAGES = {
    "executorch": ("executorch", "executorch"),
    "tosa_serializer": ("tosa-tools", "--no-deps tosa-tools"),
    "ethosu.vela": ("ethos-u-vela", "'rwkv-export[ethos-u]'"),
}
"""Modules, the packages that bring them, and what to give pip."""
HELD = Kept("token ids, logits, and state between calls", "int32, float32", "the program's own types")


def missing() -> str | None:
    """Arm's compiler, and what writes the graphs that it takes."""
    for module, (package, given) in PACKAGES.items():
        if not find_spec(module.partition(".")[0]) or not find_spec(module):
            return f"the Python package {package} is not installed (pip install {given})"
    return None


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """The NPU computes in integers only, and -1e30 to a few in 65536 even steps leaves none for anything small."""
    if wide := [tensor for tensor in spec.state if tensor.fill]:
        raise WrongCall(
            f"an Ethos-U has no floats, and 16 bits cannot hold {wide[0].name}, which starts at {wide[0].fill:g}",
            hint="executorch-tosa has float32",
        )


def export(job: Job, folder: Path) -> Written:
    """Quantise the step with Arm's quantiser, and lower it to one command stream."""
    npu = _npu(job.options["npu"])
    with quiet():
        programs = {name: _quantised(job, program, npu) for name, program in _traced(job).items()}
    said = StringIO()
    with redirect_stdout(said):
        edge = pte.lowered(job, programs, lambda: _partitioners(npu), check=False)
    precision = Precision("int8", "int16", (HELD,))
    tools = ("torchao", "tosa-tools", "ethos-u-vela")
    usage = {"What vela says": _summary(said.getvalue())}
    return pte.written(job, edge, folder, precision=precision, ids=torch.int32, tools=tools, usage=usage)


def _traced(job: Job) -> dict[str, ExportedProgram]:
    programs: dict[str, ExportedProgram] = folded(pte.traced(job, ids=torch.int32))
    return programs


def _npu(name: str) -> Any:
    with quiet():
        from executorch.backends.arm.ethosu.compile_spec import EthosUCompileSpec

        return EthosUCompileSpec(name)


def _quantised(job: Job, program: ExportedProgram, npu: Any) -> ExportedProgram:
    """16-bit activations calibrated on text, 8-bit weights, in every operation."""
    from executorch.backends.arm.quantizer import arm_quantizer

    quantizer = arm_quantizer.EthosUQuantizer(npu)
    quantizer.set_global(arm_quantizer.get_symmetric_a16w8_quantization_config())
    inputs, _ = program.example_inputs
    text = passage(job.encode, job.text)[:CALIBRATION]
    module = quantised(program.module(check_guards=False), inputs, quantizer, text, job.progress)
    return torch.export.export(module, inputs, strict=False)


def _partitioners(npu: Any) -> list[Any]:
    from executorch.backends.arm.ethosu.partitioner import EthosUPartitioner

    return [EthosUPartitioner(npu)]


def _summary(said: str) -> str:
    """Vela's own account of what it compiled: memory, multiply-accumulates, operators on the NPU and beside it."""
    found = re.findall(r"^(?:Accelerator|System|Memory|Total|CPU op|NPU op|Neural).*$", said, re.MULTILINE)
    lines = "\n".join(line.rstrip() for line in found)
    return f"""This program was compiled and never run: it needs a board with this NPU, or Arm's own simulator (FVP).

```
{lines}
```"""
