"""Prepares programs for delegates: fills that fit, absent operators respelled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from exporter.contract import Job


def with_half_fills(job: Job) -> Job:
    """The job with float32 states whose fills are finite where a delegate rounds them to float16."""
    state = tuple(replace(tensor, fill=tensor.stored_as("float16").fill) for tensor in job.spec.state)
    return replace(job, spec=replace(job.spec, state=state))


def for_vulkan(programs: Mapping[str, ExportedProgram]) -> dict[str, ExportedProgram]:
    """The programs without what Vulkan has no kernels for: the larger of two, and sums that drop the summed axis."""
    table = {torch.ops.aten.maximum.default: _maximum, torch.ops.aten.sum.dim_IntList: _sum}
    return {name: program.run_decompositions(table) for name, program in programs.items()}


def _maximum(one: Tensor, other: Tensor) -> Tensor:
    """As a smaller of two: the same bits."""
    return -torch.minimum(-one, -other)


def _sum(x: Tensor, axes: Sequence[int], keepdim: bool = False) -> Any:
    """As one that keeps the axis, of a tensor of three axes: textures have no more than four."""
    if keepdim or len(axes) != 1:
        return NotImplemented
    axis = axes[0] % x.dim()
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    flat = x.reshape(math.prod(before), x.shape[axis], math.prod(after))
    summed: Tensor = flat.sum(1, keepdim=True).reshape(*before, *after)
    return summed
