"""A differentiable RWKV-7 over whole sequences, with BlinkDL's parameter names and initial values; it cannot step."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model import (
    CHUNK,
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

DECAY = -math.exp(-0.5)  # the log of the smallest decay a channel has; CHUNK * DECAY keeps inverses below 2e4


def wkv7(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The RWKV-7 recurrence from a zero state; everything is (batch, head, time, head_size), float32.

    S[t] = S[t-1] diag(w[t]) + (S[t-1] a[t]) b[t]^T + v[t] k[t]^T with S (value, key), y[t] = S[t] r[t]. Inside a chunk
    u[t] = S[t-1] a[t] solves a unit lower triangular system, so a chunk acts on the state as S -> S M + N; M and N of
    all chunks are made at once and only that affine map is run in sequence.
    """
    batch, heads, time, size = r.shape
    padding = -time % CHUNK
    chunked = (batch, heads, -1, CHUNK, size)
    r, log_w, k, v, a, b = (F.pad(x, (0, 0, 0, padding)).reshape(chunked) for x in (r, log_w, k, v, a, b))
    after = log_w.cumsum(-2)
    total = after[..., -1:, :]
    a_in = a * (after - log_w).exp()  # a[t] as seen by the state that enters the chunk
    r_in = r * after.exp()
    b_now, k_now = b * (-after).exp(), k * (-after).exp()
    b_out, k_out = b * (total - after).exp(), k * (total - after).exp()

    ab, ak = (a_in @ b_now.mT).tril(-1), (a_in @ k_now.mT).tril(-1)
    rb, rk = (r_in @ b_now.mT).tril(), (r_in @ k_now.mT).tril()
    solved = unit_lower_solve(ab, torch.cat((a_in, ak @ v), -1))
    from_state, from_inputs = solved[..., :size], solved[..., size:]  # u = from_state @ S^T + from_inputs
    affine = torch.diag_embed(total.squeeze(-2).exp()) + from_state.mT @ b_out  # M
    update = from_inputs.mT @ b_out + v.mT @ k_out  # N

    state = r.new_zeros(batch, heads, size, size)
    entering = []
    for m, n in zip(affine.unbind(2), update.unbind(2), strict=True):
        entering.append(state)
        state = state @ m + n
    s = torch.stack(entering, 2).mT
    u = from_state @ s + from_inputs
    y = r_in @ s + rb @ u + rk @ v
    return y.flatten(2, 3)[:, :, :time]


def unit_lower_solve(strictly_lower: Tensor, right: Tensor) -> Tensor:
    """(I - A)^-1 right for a strictly lower A of size CHUNK, as (I + A^8)(I + A^4)(I + A^2)(I + A) right: A^16 = 0."""
    power = strictly_lower
    for _ in range(CHUNK.bit_length() - 1):
        right = right + power @ right
        power = power @ power
    return right


class TimeMix(nn.Module):
    """RWKV-7 attention; initial values as in the official training code."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        width, size = shape.width, shape.head_size
        self.layer, self.size = layer, size
        depth = layer / max(shape.layers - 1, 1)
        rise = 1.0 - layer / shape.layers
        channel = torch.arange(width) / width
        line = torch.arange(width) / (width - 1)
        zigzag = (torch.arange(width) % size - (size - 1) / 2) / ((size - 1) / 2)
        zigzag = zigzag * zigzag.abs()
        for name, exponent in (("r", 0.2), ("w", 0.9), ("k", 0.7), ("v", 0.7), ("a", 0.9), ("g", 0.2)):
            setattr(self, f"x_{name}", vector(1.0 - channel ** (exponent * rise)))
        self.w0 = vector(-5.5 + 6.0 * line ** (1.0 + depth**0.3) + 2.5 * zigzag)
        self.w1, self.w2 = low_rank(width, shape.rank)
        self.a0 = vector(-0.19 + 0.3 * zigzag + 0.4 * (line - 0.5))
        self.a1, self.a2 = low_rank(width, shape.rank)
        if layer > 0:
            self.v0 = vector(0.73 - 0.4 * (line - 0.5))
            self.v1, self.v2 = low_rank(width, shape.rank)
        self.g1, self.g2 = low_rank(width, shape.gate_rank)
        self.k_k = vector(0.71 - 0.1 * (line - 0.5))
        self.k_a = vector(torch.full((width,), 1.02))
        self.r_k = nn.Parameter(torch.full((width // size, size), -0.04))
        self.receptance = linear(width, width, 0.5)
        self.key = linear(width, width, 0.05)
        self.value = linear(width, width, 0.5)
        self.output = linear(width, width, 0.0)
        self.ln_x = head_norm(shape, layer)

    def forward(self, x: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor]:
        """(batch, time, width) -> (the same, the first layer's values)."""
        shift = shifted(x) - x
        xr, xw, xk, xv, xa, xg = (x + shift * getattr(self, f"x_{name}") for name in "rwkvag")
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        log_w = DECAY * torch.sigmoid((self.w0 + torch.tanh(xw @ self.w1) @ self.w2).float())
        a = torch.sigmoid(self.a0 + (xa @ self.a1) @ self.a2)
        g = torch.sigmoid(xg @ self.g1) @ self.g2
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.v0 + (xv @ self.v1) @ self.v2)
        removal = F.normalize(split_heads(k * self.k_k, self.size), dim=-1)
        k = k * (1 + (a - 1) * self.k_a)
        r, log_w, k, v_heads, a = (split_heads(t, self.size) for t in (r, log_w, k, v, a))
        with torch.autocast(x.device.type, enabled=False):
            y = wkv7(r, log_w, k, v_heads, -removal, removal * a)
        y = merge_heads(y, self.ln_x)
        bonus = (r * k * self.r_k[:, None]).sum(-1, keepdim=True) * v_heads
        mixed: Tensor = self.output((y + bonus.transpose(1, 2).flatten(2)) * g)
        return mixed, v_first


class ChannelMix(nn.Module):
    """RWKV-7 feed-forward: squared ReLU, no gate."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        channel = torch.arange(shape.width) / shape.width
        self.x_k = vector(1.0 - channel ** ((1.0 - layer / shape.layers) ** 4))
        self.key = linear(shape.width, shape.ffn, 0.5)
        self.value = linear(shape.ffn, shape.width, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> the same."""
        mixed = x + (shifted(x) - x) * self.x_k
        out: Tensor = self.value(torch.relu(self.key(mixed)) ** 2)
        return out


def rwkv7(shape: Shape) -> LanguageModel:
    """The language model; rank is that of its adapters but the gate's."""
    return LanguageModel(shape, TimeMix, ChannelMix)
