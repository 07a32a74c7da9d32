"""RWKV-6: v5.2's state with a decay and a token shift that depend on the input through low-rank maps."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporter.contract import Dimensions, Entry, Layout, ModelSpec, Spelling, Weights
from exporter.models import layout as lay
from exporter.models.blocks import BlockRecurrence, blocked
from exporter.models.layers import (
    GatedChannelMix,
    Linear,
    TokenShift,
    flat,
    head_norm,
    matrix_states,
    project,
    step_model,
    transposed,
)
from exporter.models.parameters import Take
from exporter.models.primitives import Reduce, TokenSums, VecMat, column, last, previous
from exporter.models.v5 import NOTHING_LEFT, bonus_5_2, recur, recur_pair, solve

VERSIONS = ("6",)

MIXED = "wkvrg"  # the order of time_maa_w2's rows


def matches(names: Collection[str]) -> str | None:
    """v6 is the version whose token shift has a time_maa_x."""
    return "6" if "blocks.0.att.time_maa_x" in names else None


def dimensions(version: str, *, layers: int, width: int, head_size: int, vocab: int) -> Dimensions:
    """Official sizes: ffn 3.5x; LoRA ranks 32 and 64, doubled from width 4096 on."""
    large = 2 if width >= 4096 else 1
    ffn = int(width * 3.5 // 32 * 32)
    return Dimensions(layers, width, head_size, ffn, vocab, {"mix": 32 * large, "decay": 64 * large})


def layout(version: str, d: Dimensions) -> Layout:
    """Tensors and their fills, after RWKV-LM's RWKV-v6 initialisation, its zeros replaced by trained scales."""
    entries = lay.common(d)
    heads = d.width // d.head_size
    vector, mix, decay = (1, 1, d.width), d.ranks["mix"], d.ranks["decay"]
    maa = Entry(vector, lay.uniform(0.0, 1.0))
    for i in range(d.layers):
        att = lay.square(d, "receptance", "key", "value", "output", "gate") | {
            **{f"time_maa_{name}": maa for name in "x" + MIXED},
            "time_maa_w1": Entry((d.width, 5 * mix), lay.linear(d.width, 0.5)),
            "time_maa_w2": Entry((5, mix, d.width), lay.linear(mix, 0.3)),
            "time_decay": Entry(vector, lay.ramp(-6.0, -1.0, 0.7 + 1.3 * i / max(d.layers - 1, 1))),
            "time_decay_w1": Entry((d.width, decay), lay.linear(d.width, 0.5)),
            "time_decay_w2": Entry((decay, d.width), lay.linear(decay, 0.5)),
            "time_faaaa": Entry((heads, d.head_size), lay.uniform(-0.5, 0.5)),
            "ln_x.weight": Entry((d.width,), lay.full(((1 + i) / d.layers) ** 0.7)),
            "ln_x.bias": Entry((d.width,), lay.full(0.0)),
        }
        ffn = lay.feed_forward(d) | lay.square(d, "receptance") | {f"time_maa_{name}": maa for name in "kr"}
        entries |= lay.scoped(f"blocks.{i}.att", att) | lay.scoped(f"blocks.{i}.ffn", ffn)
    return entries


def spec(version: str, weights: Weights, ln_x_eps: float) -> ModelSpec:
    """Dimensions from the shapes; state matrices are indexed [key, value]."""
    vocab, width = lay.shape(weights, "emb.weight", 2)
    layers = lay.count_layers(weights)
    ffn, _ = lay.shape(weights, "blocks.0.ffn.key.weight", 2)
    heads, size = lay.heads(weights, "blocks.0.att.time_faaaa", width)
    _, five = lay.shape(weights, "blocks.0.att.time_maa_w1", 2)
    _, decay = lay.shape(weights, "blocks.0.att.time_decay_w1", 2)
    d = Dimensions(layers, width, size, ffn, vocab, {"mix": five // 5, "decay": decay})
    lay.check(weights, layout(version, d), version)
    state = matrix_states(layers, width, heads, ("key", "value"))
    return ModelSpec(version, layers, width, heads, size, vocab, ln_x_eps, state)


def build(spec: ModelSpec, weights: Weights, spelling: Spelling) -> nn.Module:
    """The step module, parameters on the meta device."""

    def mixes(block: Take, i: int) -> tuple[nn.Module, nn.Module]:
        ffn = block.at("ffn")
        shift = TokenShift(**{name: ffn(f"time_maa_{name}", fn=flat) for name in "kr"})
        return TimeMix(block.at("att"), spec, spelling), GatedChannelMix(ffn, shift)

    return step_model(spec, weights, spelling, mixes)


class DataDependentShift(nn.Module):
    """Five mixed inputs whose mixing weights are themselves computed from a first mix of x with its predecessor."""

    def __init__(self, take: Take) -> None:
        super().__init__()
        self.maa_x = take("time_maa_x", fn=flat)
        self.down = Linear(take("time_maa_w1", fn=transposed))
        self.maa = nn.ParameterDict([(name, take(f"time_maa_{name}", fn=flat)) for name in MIXED])
        rank = self.down.weight.shape[0] // len(MIXED)
        self.rank = rank
        self.up = nn.ModuleList(Linear(take("time_maa_w2", fn=lambda w, n=n: w[n].t())) for n in range(len(MIXED)))

    def forward(self, x: Tensor, shift: Tensor) -> list[Tensor]:
        """x (T, C), shift (1, C) -> inputs (T, C) of w, k, v, r and g."""
        delta = previous(x, shift) - x
        lora = torch.tanh(self.down(x + delta * self.maa_x))  # (T, 5 * rank)
        parts = [lora[:, n * self.rank : (n + 1) * self.rank] for n in range(len(MIXED))]  # slices: delegates take them
        mixed = zip(self.maa.values(), self.up, parts, strict=True)
        return [x + delta * (maa + up(part)) for maa, up, part in mixed]


class TimeMix(nn.Module):
    """v5.2's recurrence with w = exp(-exp(decay + tanh(xw @ w1) @ w2)) for every token."""

    def __init__(self, take: Take, spec: ModelSpec, spelling: Spelling) -> None:
        super().__init__()
        self.heads, self.size = spec.heads, spec.head_size
        self.shift = DataDependentShift(take)
        linears = ("receptance", "key", "value", "gate", "output")
        self.receptance, self.key, self.value, self.gate, self.output = (project(take, name) for name in linears)
        self.decay_down = Linear(take("time_decay_w1", fn=transposed))
        self.decay_up = Linear(take("time_decay_w2", fn=transposed), take("time_decay", fn=flat))
        self.recurrence = Recurrence(take, spec, spelling)
        self.ln_x = head_norm(take, spec, spelling)

    def forward(self, x: Tensor, first: Tensor | None, shift: Tensor, *wkv: Tensor) -> tuple[Tensor | None, ...]:
        """x (T, C), shift (1, C), wkv (1, H, N key, N value) or a pair -> added (T, C), first, shift, wkv."""
        xw, xk, xv, xr, xg = self.shift(x, shift)
        heads = (-1, self.heads, self.size)
        r, k, v = self.receptance(xr).reshape(heads), self.key(xk).reshape(heads), self.value(xv).reshape(heads)
        log_w = -torch.exp(self.decay_up(torch.tanh(self.decay_down(xw)))).reshape(heads)
        y, *new = self.recurrence(r, log_w, k, v, *wkv)
        return self.output(self.ln_x(y) * F.silu(self.gate(xg))), first, last(x), *new


class Recurrence(BlockRecurrence):
    """v5.2's with a decay for every token: (r, log_w, k, v, S) -> (y, S); vectors (T, H, N), S as there."""

    idle_zeros = True

    def __init__(self, take: Take, spec: ModelSpec, spelling: Spelling) -> None:
        super().__init__(given=4, block=spelling.block)
        self.bonus = take("time_faaaa", fn=bonus_5_2)
        self.dot, self.read = Reduce(spec.head_size, spelling), VecMat(spec.head_size, spelling)
        self.sums = TokenSums(spelling)

    def step(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """One token."""
        r, log_w, k, v, wkv, *low = tensors
        if low:
            return recur_pair((wkv, *low), r, k, v, column(log_w), self.bonus, self.dot, self.read)
        return recur(wkv, r, k, v, column(torch.exp(log_w)), self.bonus, self.dot, self.read)

    def solve(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Blocks of as many decays as tokens."""
        r, log_w, k, v, *state = tensors
        size = min(self.block, r.shape[0])
        y, *new = solve(state, r, k, v, blocked(log_w.clamp(min=NOTHING_LEFT), size), size, self.sums)
        return y + self.dot(r * self.bonus * k) * v, *new
