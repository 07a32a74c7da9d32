"""ExecuTorch .pte programs for CPUs: XNNPACK, which takes the whole step as one delegate, and the portable kernels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.export import ExportedProgram

from exporter import calibration, keep, pte
from exporter.contract import Job, ModelSpec, Spelling, Target, Written
from exporter.models.layers import StepModel
from exporter.passes import edge_fold, edge_views
from exporter.quiet import quiet
from runtimes.contract import Array
from runtimes.manifest import Precision

if TYPE_CHECKING:
    from exporter.simulation import Simulation

QUANTISED = {"8da8w": "int8", "8da4w": "int4", "8da4w-b128": "int4"}

TARGETS = (
    Target(
        name="executorch-xnnpack",
        summary="ExecuTorch with XNNPACK kernels: Android, iOS and Linux CPUs",
        runtime="pte",
        device="cpu",
        precisions={"fp32": "fp32", **QUANTISED},
        spelling=Spelling(norm="linear", head_norm="linear", reduce="linear", contract="multiply", block=16),
        options=(pte.WEIGHTS_OPTION, calibration.OPTION, keep.OPTION),
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
    """Calibration is for 4 bits and known vocabularies."""
    four_bits = QUANTISED.get(precision) == "int4"
    calibration.refuse(spec, precision, options.get("calibrate", "none"), four_bits=four_bits)
    keep.refuse(precision, options, quantised=precision in QUANTISED)


def simulation(precision: str) -> Simulation | None:
    """What quantising makes of single matrices."""
    if precision not in QUANTISED:
        return None
    from exporter.passes import torch_quantise, torch_simulation

    return torch_simulation.TorchSimulation(torch_quantise.PRESETS[precision])


def export(job: Job, folder: Path) -> Written:
    """Lower the step to a program with a method for each number of tokens."""
    if job.precision in QUANTISED:
        return _quantised(job, folder)
    return pte.written(job, _lowered(job), folder, precision=Precision("float32", "float32"))


def _quantised(job: Job, folder: Path) -> Written:
    from exporter.passes import torch_quantise

    model, grid = cast(StepModel, job.model), torch_quantise.PRESETS[job.precision]
    moments: Mapping[str, Array] = {}
    if job.options["calibrate"] != "none":
        moments = calibration.inputs_of(model, job.spec, calibration.passage(job.encode, job.text), job.progress)
    wide = partial(keep.holds, job.options)
    wider = torch_quantise.quantise(model, job.spec, grid, job.progress, moments, wide=wide)
    kept = (*keep.kept(job.options, "float32"), *wider)
    programs = pte.traced(job, module=model)
    with quiet():  # decomposed, torchao's tensors are constants of their own, which can be kept in a file of their own
        programs = {name: program.run_decompositions({}) for name, program in programs.items()}
    edge = _for_xnnpack(job, programs)
    precision = Precision(QUANTISED[job.precision], "products of int8, float32 around them", kept)
    return pte.written(job, edge, folder, precision=precision, tools=("torchao",))


def _lowered(job: Job) -> Any:
    programs = pte.traced(job)
    if job.target.name == "executorch-portable":
        # Without this, every linear copies its transposed weight at every step.
        return pte.lowered(job, programs, preserve=(torch.ops.aten.linear.default,))
    return _for_xnnpack(job, programs)


def _for_xnnpack(job: Job, programs: Mapping[str, ExportedProgram]) -> Any:
    """Everything but lookups in one delegate, whatever the number of tokens."""
    with quiet():
        folded = edge_fold.folded(programs)
    return pte.lowered(job, folded, _xnnpack, passes=(edge_views.views,))


def _xnnpack() -> list[Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return [XnnpackPartitioner()]
