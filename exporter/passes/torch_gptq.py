"""Rounds the weight of a linear to 4 bits by what that costs on a text, on torchao's own scales; see gptq.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from exporter.models.layers import Linear
from exporter.passes.gptq import shares
from runtimes.contract import Array

LEAST, MOST = -8, 7


def compensate(linear: Linear, group: int, moment: Array, plain: Callable[[nn.Module], None]) -> None:
    """Put a rounded weight in place of a linear's, each group of inputs to make up for what those before it lost.

    moment: X^T X of the inputs X (n, K) the linear takes, (K, K), on any scale
    plain:  rounds a linear to nearest in groups of as many inputs, for the scales
    """
    left, shared = linear.weight.detach().clone(), torch.from_numpy(shares(moment))
    plain(linear)
    rounded: Any = linear.weight
    for start in range(0, left.shape[1], group):
        some, later = slice(start, start + group), slice(start + group, None)
        one = Linear(nn.Parameter(left[:, some].contiguous(), requires_grad=False))
        plain(one)
        scales = one.weight.scale  # type: ignore[attr-defined]
        values, errors = _group(left[:, some], scales.to(torch.float32)[:, 0], shared[some, some])
        left[:, later] -= errors @ shared[some, later]
        rounded.qdata[:, some], rounded.scale[:, start // group] = values, scales[:, 0]


def _group(left: Tensor, scales: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
    """Values (N, group) of `left` (N, group), and each input's error over its own share (N, group)."""
    values, errors = torch.empty_like(left, dtype=torch.int8), torch.empty_like(left)
    for i in range(left.shape[1]):
        weight = left[:, i]
        steps = (weight / scales).round().clamp(LEAST, MOST)
        errors[:, i] = (weight - steps * scales) / shared[i, i]
        left[:, i + 1 :] -= errors[:, i, None] * shared[i, i + 1 :]
        values[:, i] = steps
    return values, errors
