"""A differentiable RWKV-4 over whole sequences, with BlinkDL's parameter names; it cannot step."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model import CHUNK, GatedChannelMix, LanguageModel, Shape, linear, shifted, vector

NOTHING = -1e30  # log of the total weight before the first token, finite so that its gradients are


def wkv4(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor) -> Tensor:
    """The RWKV-4 recurrence from a zero state; k, v (batch, time, channel), decay > 0 and bonus (channel,), float32.

    y[t] is the mean of v[s], s <= t, under the weights exp(k[s] - (t - 1 - s) decay) for s < t and exp(bonus + k[t])
    for s = t. The past is carried from chunk to chunk as (log of its total weight, its mean), so no exponent is
    positive.
    """
    batch, time, channels = k.shape
    k, v = (F.pad(x, (0, 0, 0, -time % CHUNK)).reshape(batch, -1, CHUNK, channels) for x in (k, v))
    position = torch.arange(CHUNK, device=k.device)
    age = (position[:, None] - 1 - position)[..., None]  # (t, s, 1): t - 1 - s
    offset = torch.where(age < 0, bonus, -age * decay).masked_fill(age < -1, -math.inf)
    weight = k[:, :, None] + offset  # (batch, chunk, t, s, channel), a log
    means, totals = carry(k - position.flip(0)[:, None] * decay, v, decay)
    past = totals[:, :, None] - position[:, None] * decay  # (batch, chunk, t, channel), a log
    whole = torch.logaddexp(past, weight.logsumexp(3))
    now = ((weight - whole[:, :, :, None]).exp() * v[:, :, None]).sum(3)
    return ((past - whole).exp() * means[:, :, None] + now).flatten(1, 2)[:, :time]


def carry(weight: Tensor, v: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """What enters every chunk: the past's mean and the log of its weight at the first token, (batch, chunk, channel).

    weight, v: (batch, chunk, s, channel), weight the log of what token s weighs at the next chunk's first token.
    """
    added = weight.logsumexp(2)
    values = ((weight - added[:, :, None]).exp() * v).sum(2)
    mean, total = torch.zeros_like(values[:, 0]), torch.full_like(added[:, 0], NOTHING)
    entering = []
    for value, log_weight in zip(values.unbind(1), added.unbind(1), strict=True):
        entering.append((mean, total))
        kept = total - CHUNK * decay
        total = torch.logaddexp(kept, log_weight)
        mean = torch.lerp(value, mean, (kept - total).exp())
    means, totals = zip(*entering, strict=True)
    return torch.stack(means, 1), torch.stack(totals, 1)


class TimeMix(nn.Module):
    """RWKV-4 attention."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        width = shape.width
        depth = layer / max(shape.layers - 1, 1)
        channel = (torch.arange(width) / width) ** (1.0 - layer / shape.layers)
        self.time_mix_k = vector(channel)
        self.time_mix_v = vector(channel + 0.3 * depth)
        self.time_mix_r = vector(channel**0.5)
        line = torch.arange(width) / (width - 1)
        self.time_decay = nn.Parameter(-5.0 + 8.0 * line ** (0.7 + 1.3 * depth))
        self.time_first = nn.Parameter(math.log(0.3) + 0.5 * ((torch.arange(width) + 1) % 3 - 1))
        self.receptance = linear(width, width, 0.5)
        self.key = linear(width, width, 0.05)
        self.value = linear(width, width, 0.5)
        self.output = linear(width, width, 0.0)

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(batch, time, width) -> (the same, first)."""
        before = shifted(x)
        xk, xv, xr = (torch.lerp(before, x, getattr(self, f"time_mix_{name}")) for name in "kvr")
        r, k, v = torch.sigmoid(self.receptance(xr)), self.key(xk).float(), self.value(xv).float()
        y = wkv4(k, v, self.time_decay.exp(), self.time_first)
        return self.output(r * y), first


class ChannelMix(GatedChannelMix):
    """The feed-forward of RWKV-4 and 5."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__(shape)
        channel = (torch.arange(shape.width) / shape.width) ** (1.0 - layer / shape.layers)
        self.time_mix_k, self.time_mix_r = vector(channel), vector(channel)

    def shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, width) -> the inputs of key and receptance."""
        before = shifted(x)
        return torch.lerp(before, x, self.time_mix_k), torch.lerp(before, x, self.time_mix_r)


def rwkv4(shape: Shape) -> LanguageModel:
    """The language model; head size and ranks have no meaning here."""
    return LanguageModel(shape, TimeMix, ChannelMix)
