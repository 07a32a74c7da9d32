"""A differentiable RWKV-5.2 over whole sequences, with BlinkDL's parameter names; it cannot step."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model import CHUNK, LanguageModel, Shape, head_norm, linear, merge_heads, shifted, split_heads, vector
from training.v4 import ChannelMix


def wkv5(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, u: Tensor) -> Tensor:
    """The recurrence of RWKV-5.2 and 6 from a zero state; (batch, head, time, size), u (head, 1, size), float32.

    S[t] = diag(w[t]) S[t-1] + k[t] v[t]^T with S (key, value), y[t] = r[t] (S[t-1] + diag(u) k[t] v[t]^T). The decay
    between any two tokens of a chunk is the exponential of a difference <= 0, channel by channel, never a quotient of
    two products. The batch of log_w may be 1.
    """
    time, size = r.shape[-2:]
    bonus = (r * u * k).sum(-1, keepdim=True) * v
    padded = (F.pad(x, (0, 0, 0, -time % CHUNK)) for x in (r, log_w, k, v))
    r, log_w, k, values = (x.reshape(*x.shape[:2], -1, CHUNK, size) for x in padded)
    after = log_w.cumsum(-2)
    before, total = F.pad(after, (0, 0, 1, -1)), after[..., -1, :]
    between = before[..., :, None, :] - after[..., None, :, :]  # (t, s, size): the log decay of s as t reads it
    past = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=r.device).tril(-1)
    decay = between.masked_fill(~past[..., None], -math.inf).exp()
    scores = ((k[..., None, :, :] * decay) @ r[..., None]).squeeze(-1)  # (batch, head, chunk, t, s)

    update = (k * (total[..., None, :] - after).exp()).mT @ values  # (key, value), as the next chunk finds it
    state = torch.zeros_like(update[:, :, 0])
    entering = []
    for kept, added in zip(total.exp().unbind(2), update.unbind(2), strict=True):
        entering.append(state)
        state = state * kept[..., None] + added
    y = (r * before.exp()) @ torch.stack(entering, 2) + scores @ values
    out: Tensor = y.flatten(2, 3)[:, :, :time] + bonus
    return out


class TimeMix(nn.Module):
    """RWKV-5.2 attention: a decay and a bonus for every key channel."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        width, self.size = shape.width, shape.head_size
        heads = width // self.size
        depth = layer / max(shape.layers - 1, 1)
        channel = (torch.arange(width) / width) ** (1.0 - layer / shape.layers)
        self.time_mix_k = vector(channel)
        self.time_mix_v = vector(channel + 0.3 * depth)
        self.time_mix_r, self.time_mix_g = vector(channel**0.5), vector(channel**0.5)
        decay, bonus = initial_decay(width, depth), initial_bonus(width, depth)
        self.time_decay = nn.Parameter(decay.reshape(heads, self.size))
        self.time_faaaa = nn.Parameter(bonus.reshape(heads, self.size))
        self.receptance = linear(width, width, 0.5)
        self.key = linear(width, width, 0.05)
        self.value = linear(width, width, 0.5)
        self.gate = linear(width, width, 0.5)
        self.output = linear(width, width, 0.0)
        self.ln_x = head_norm(shape, layer)

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(batch, time, width) -> (the same, first)."""
        before = shifted(x)
        xk, xv, xr, xg = (torch.lerp(before, x, getattr(self, f"time_mix_{name}")) for name in "kvrg")
        projected = (self.receptance(xr), self.key(xk), self.value(xv))
        r, k, v = (split_heads(y, self.size) for y in projected)
        log_w = -self.time_decay.exp()[None, :, None].expand(-1, -1, x.shape[1], -1)
        with torch.autocast(x.device.type, enabled=False):
            y = wkv5(r, log_w, k, v, self.time_faaaa[:, None])
        return self.output(merge_heads(y, self.ln_x) * F.silu(self.gate(xg))), first


def initial_decay(width: int, depth: float) -> Tensor:
    """Log of the decay rate of every channel, slow to fast; depth in [0, 1]."""
    line = torch.arange(width) / (width - 1)
    return -6.0 + 5.0 * line ** (0.7 + 1.3 * depth)


def initial_bonus(width: int, depth: float) -> Tensor:
    """Weight of the current token for every channel; depth in [0, 1]."""
    line = torch.arange(width) / (width - 1)
    return depth * (1.0 - line) + 0.1 * ((torch.arange(width) + 1) % 3 - 1)


def rwkv5(shape: Shape) -> LanguageModel:
    """The language model; ranks have no meaning here."""
    return LanguageModel(shape, TimeMix, ChannelMix)
