"""A differentiable RWKV-6 over whole sequences, with BlinkDL's parameter names; it cannot step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model import (
    GatedChannelMix,
    LanguageModel,
    Shape,
    head_norm,
    linear,
    low_rank,
    merge_heads,
    shifted,
    split_heads,
    vector,
)
from training.v5 import initial_bonus, initial_decay, wkv5

MIXED = "wkvrg"  # the order of time_maa_w2's rows


class TimeMix(nn.Module):
    """RWKV-6 attention: v5.2's recurrence, its token shift and decay computed from the input."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        width, rank, self.size = shape.width, shape.rank, shape.head_size
        depth = layer / max(shape.layers - 1, 1)
        channel = (torch.arange(width) / width) ** (1.0 - layer / shape.layers)
        self.time_maa_x, self.time_maa_w = vector(1.0 - channel), vector(1.0 - channel)
        self.time_maa_k = vector(1.0 - channel)
        self.time_maa_v = vector(1.0 - channel - 0.3 * depth)
        self.time_maa_r, self.time_maa_g = vector(1.0 - channel**0.5), vector(1.0 - channel**0.5)
        self.time_maa_w1 = nn.Parameter(torch.zeros(width, len(MIXED) * rank))
        self.time_maa_w2 = nn.Parameter(torch.empty(len(MIXED), rank, width).uniform_(-0.01, 0.01))
        self.time_decay = vector(initial_decay(width, depth))
        self.time_decay_w1, self.time_decay_w2 = low_rank(width, rank)
        self.time_faaaa = nn.Parameter(initial_bonus(width, depth).reshape(-1, self.size))
        self.receptance = linear(width, width, 0.5)
        self.key = linear(width, width, 0.05)
        self.value = linear(width, width, 0.5)
        self.gate = linear(width, width, 0.5)
        self.output = linear(width, width, 0.0)
        self.ln_x = head_norm(shape, layer)

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(batch, time, width) -> (the same, first)."""
        xw, xk, xv, xr, xg = self.shift(x)
        projected = (self.receptance(xr), self.key(xk), self.value(xv))
        r, k, v = (split_heads(y, self.size) for y in projected)
        decay = self.time_decay + torch.tanh(xw @ self.time_decay_w1) @ self.time_decay_w2
        log_w = -split_heads(decay, self.size).exp()
        with torch.autocast(x.device.type, enabled=False):
            y = wkv5(r, log_w, k, v, self.time_faaaa[:, None])
        return self.output(merge_heads(y, self.ln_x) * F.silu(self.gate(xg))), first

    def shift(self, x: Tensor) -> list[Tensor]:
        """(batch, time, width) -> the inputs of w, k, v, r and g."""
        delta = shifted(x) - x
        inner = torch.tanh((x + delta * self.time_maa_x) @ self.time_maa_w1)
        outer = torch.einsum("btnd,ndc->nbtc", inner.reshape(*x.shape[:2], len(MIXED), -1), self.time_maa_w2)
        return [x + delta * (getattr(self, f"time_maa_{name}") + outer[n]) for n, name in enumerate(MIXED)]


class ChannelMix(GatedChannelMix):
    """RWKV-6 feed-forward; it stores the predecessor's share where RWKV-5 stores the current token's."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__(shape)
        channel = (torch.arange(shape.width) / shape.width) ** (1.0 - layer / shape.layers)
        self.time_maa_k, self.time_maa_r = vector(1.0 - channel), vector(1.0 - channel)

    def shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, width) -> the inputs of key and receptance."""
        before = shifted(x)
        return torch.lerp(x, before, self.time_maa_k), torch.lerp(x, before, self.time_maa_r)


def rwkv6(shape: Shape) -> LanguageModel:
    """The language model; rank is that of the token shift's and the decay's adapters."""
    return LanguageModel(shape, TimeMix, ChannelMix)
