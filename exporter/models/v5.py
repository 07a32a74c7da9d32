"""RWKV-5.0, 5.1 and 5.2: a matrix state per head with a fixed decay; 5.1 adds a gate, 5.2 a decay per key channel."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporter.contract import Dimensions, Entry, Layout, ModelSpec, Spelling, Weights
from exporter.models import layout as lay
from exporter.models import pairs
from exporter.models.blocks import BlockRecurrence, between, blocked, chain, joined, unblocked
from exporter.models.layers import (
    GatedChannelMix,
    TokenShift,
    complement,
    head_norm,
    matrix_states,
    project,
    step_model,
)
from exporter.models.parameters import Take
from exporter.models.primitives import Reduce, TokenSums, VecMat, at, column, last, row
from runtimes.errors import BadCheckpoint

VERSIONS = ("5.0", "5.1", "5.2")

NOTHING_LEFT = -128.0  # e^-128 is 0 in float32, and 32 times -128 is finite in float16 too


def matches(names: Collection[str]) -> str | None:
    """5.2 renamed the bonus to time_faaaa; 5.1 brought the gate."""
    if "blocks.0.att.ln_x.weight" not in names or "blocks.0.att.time_decay" not in names:
        return None
    if "blocks.0.att.time_faaaa" in names:
        return "5.2"
    return "5.1" if "blocks.0.att.gate.weight" in names else "5.0"


def dimensions(version: str, *, layers: int, width: int, head_size: int, vocab: int) -> Dimensions:
    """Official sizes: ffn 4x before 5.1, 3.5x rounded down to 32 since."""
    ffn = 4 * width if version == "5.0" else int(width * 3.5 // 32 * 32)
    return Dimensions(layers, width, head_size, ffn, vocab)


def layout(version: str, d: Dimensions) -> Layout:
    """Tensors and their fills, after RWKV-LM's RWKV-v5 initialisation, its zeros replaced by trained scales."""
    entries = lay.common(d)
    heads = d.width // d.head_size
    mix = Entry((1, 1, d.width), lay.uniform(0.0, 1.0))
    gate = ("gate",) if version != "5.0" else ()
    names = "kvrg" if gate else "kvr"
    per_head = (heads, d.head_size) if version == "5.2" else (heads,)
    bonus = "time_faaaa" if version == "5.2" else "time_first"
    for i in range(d.layers):
        att = lay.square(d, "receptance", "key", "value", "output", *gate) | {
            "time_decay": Entry(per_head, lay.ramp(-6.0, -1.0, 0.7 + 1.3 * i / max(d.layers - 1, 1))),
            bonus: Entry(per_head, lay.uniform(-0.5, 0.5)),
            "ln_x.weight": Entry((d.width,), lay.full(((1 + i) / d.layers) ** 0.7)),
            "ln_x.bias": Entry((d.width,), lay.full(0.0)),
            **{f"time_mix_{name}": mix for name in names},
        }
        ffn = lay.feed_forward(d) | lay.square(d, "receptance") | {f"time_mix_{name}": mix for name in "kr"}
        entries |= lay.scoped(f"blocks.{i}.att", att) | lay.scoped(f"blocks.{i}.ffn", ffn)
    return entries


def spec(version: str, weights: Weights, ln_x_eps: float) -> ModelSpec:
    """Dimensions from the shapes; state matrices are indexed [key, value]."""
    vocab, width = lay.shape(weights, "emb.weight", 2)
    layers = lay.count_layers(weights)
    ffn, _ = lay.shape(weights, "blocks.0.ffn.key.weight", 2)
    heads = lay.shape(weights, "blocks.0.att.time_decay", 2 if version == "5.2" else 1)[0]
    if width % heads:
        raise BadCheckpoint(f"blocks.0.att.time_decay has {heads} heads, which do not divide the width {width}")
    size = width // heads
    lay.check(weights, layout(version, Dimensions(layers, width, size, ffn, vocab)), version)
    state = matrix_states(layers, width, heads, ("key", "value"))
    return ModelSpec(version, layers, width, heads, size, vocab, ln_x_eps, state)


def build(spec: ModelSpec, weights: Weights, spelling: Spelling) -> nn.Module:
    """The step module, parameters on the meta device."""

    def mixes(block: Take, i: int) -> tuple[nn.Module, nn.Module]:
        ffn = block.at("ffn")
        shift = TokenShift(**{name: ffn(f"time_mix_{name}", fn=complement) for name in "kr"})
        return TimeMix(block.at("att"), spec, spelling), GatedChannelMix(ffn, shift)

    return step_model(spec, weights, spelling, mixes)


def decay_row(time_decay: Tensor) -> Tensor:
    """exp(-exp(time_decay)) as (1, H, N or 1, 1), along the key axis of the state."""
    heads = time_decay.shape[0]
    return torch.exp(-torch.exp(time_decay)).reshape(1, heads, -1, 1)


def log_decay_row(time_decay: Tensor) -> Tensor:
    """-exp(time_decay) as (1, H, 1, N or 1), along the channels of a block."""
    heads = time_decay.shape[0]
    return (-torch.exp(time_decay)).clamp(min=NOTHING_LEFT).reshape(1, heads, 1, -1)


def bonus_5_2(time_faaaa: Tensor) -> Tensor:
    """u as it is, (1, H, N): one a key channel."""
    return time_faaaa.reshape(1, *time_faaaa.shape)


def bonus_5_0(time_first: Tensor) -> Tensor:
    """u = exp(time_first), (1, H, 1): one a head."""
    return torch.exp(time_first).reshape(1, -1, 1)


class TimeMix(nn.Module):
    """y = r @ (diag(u) k v^T + S), read before S = diag(w) S + k v^T; S is [key, value]."""

    def __init__(self, take: Take, spec: ModelSpec, spelling: Spelling) -> None:
        super().__init__()
        self.heads, self.size = spec.heads, spec.head_size
        self.gate = project(take, "gate") if take.has("gate.weight") else None
        names = "rkvg" if self.gate else "rkv"
        self.shift = TokenShift(**{name: take(f"time_mix_{name}", fn=complement) for name in names})
        linears = ("receptance", "key", "value", "output")
        self.receptance, self.key, self.value, self.output = (project(take, name) for name in linears)
        self.recurrence = Recurrence(take, spec, spelling)
        self.ln_x = head_norm(take, spec, spelling)

    def forward(self, x: Tensor, first: Tensor | None, shift: Tensor, *wkv: Tensor) -> tuple[Tensor | None, ...]:
        """x (T, C), shift (1, C), wkv (1, H, N key, N value) or a pair -> added (T, C), first, shift, wkv."""
        xr, xk, xv, *xg = self.shift(x, shift)
        heads = (-1, self.heads, self.size)
        r, k, v = self.receptance(xr).reshape(heads), self.key(xk).reshape(heads), self.value(xv).reshape(heads)
        y, *new = self.recurrence(r, k, v, *wkv)
        y = self.ln_x(y)
        if self.gate is not None:
            y = y * F.silu(self.gate(xg[0]))
        return self.output(y), first, last(x), *new


class Recurrence(BlockRecurrence):
    """The fixed decay's: (r, k, v, S) -> (y, S); vectors (T, H, N), S (1, H, N key, N value) or a pair."""

    def __init__(self, take: Take, spec: ModelSpec, spelling: Spelling) -> None:
        super().__init__(given=3, block=spelling.block)
        self.decay, self.log_decay = take("time_decay", fn=decay_row), take("time_decay", fn=log_decay_row)
        late = take.has("time_faaaa")
        self.bonus = take("time_faaaa", fn=bonus_5_2) if late else take("time_first", fn=bonus_5_0)
        self.dot, self.read = Reduce(spec.head_size, spelling), VecMat(spec.head_size, spelling)
        self.sums = TokenSums(spelling)

    def step(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """One token."""
        r, k, v, wkv, *low = tensors
        if low:
            return recur_pair((wkv, *low), r, k, v, self.log_decay.mT, self.bonus, self.dot, self.read)
        return recur(wkv, r, k, v, self.decay, self.bonus, self.dot, self.read)

    def solve(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Blocks of one decay."""
        r, k, v, *others = tensors
        mask, state = [x for x in others if x.dim() == 3], [x for x in others if x.dim() == 4]
        size = min(self.block, r.shape[0])
        log_w = self.sums.alike(self.log_decay, size)
        if mask:
            log_w = log_w * blocked(mask[0], size)
        y, *new = solve(state, r, k, v, log_w, size, self.sums)
        return y + self.dot(r * self.bonus * k) * v, *new


def recur(
    wkv: Tensor, r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, dot: Reduce, read: VecMat
) -> tuple[Tensor, Tensor]:
    """One token: r, k, v, u (1, H, N), w (1, H, N, 1), wkv (1, H, key, value) -> y (1, H, N), wkv.

    The bonus term r @ (diag(u) k v^T) is taken as (r . u k) v, which needs no second matrix.
    """
    kv = column(k) * row(v)  # (1, H, key, value)
    y = read(r, wkv) + dot(r * u * k) * v  # read before the update
    return y, kv + w * wkv


def recur_pair(
    pair: Sequence[Tensor], r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, dot: Reduce, read: VecMat
) -> tuple[Tensor, ...]:
    """As `recur`, of a state in two tensors: log_w (1, H, N or 1, 1)."""
    y = pairs.read(pair, lambda s: read(r, s)) + dot(r * u * k) * v
    decayed = pairs.gone(log_w)
    return y, *pairs.changed(pair, lambda s: -(decayed * s), column(k) * row(v))


def solve(
    state: Sequence[Tensor], r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, size: int, sums: TokenSums
) -> tuple[Tensor, ...]:
    """Whole blocks, the bonus left out: r, k, v (T, H, N), log_w (blocks or 1, H, size, N or 1) -> y (T, H, N), state.

    Past tokens of a block are seen through scores, level by level of `joined`, whose two factors are decays and so
    within 1; the state is needed where a block starts only, from S' = diag(w) S + D.
    """
    r, k, v = blocked(r, size), blocked(k, size), blocked(v, size)  # (blocks, H, size, N)
    spans = between(size, log_w)
    w = torch.exp(sums(spans.reshape(-1, size), log_w))
    w = w.reshape(*w.shape[:2], -1, size, w.shape[3])  # (blocks or 1, H, 2 + levels, size, N or 1)
    until, within, since = w[:, :, 0], w[:, :, 1:-1], w[:, :, -1]
    scores = (r[:, :, None] * within) @ (k[:, :, None] * within).mT  # (blocks, H, levels, t, s)
    scores = sums.levels(scores * joined(size, log_w))
    if len(state) > 1:
        decayed = pairs.gone(sums.total(log_w, size)).unsqueeze(-1)
        add = (k * since).mT @ v
        found, pair = pairs.chain(state, lambda n, s: -(at(n, decayed) * s), lambda n: at(n, add), add.shape[0])
        return unblocked(scores @ v + pairs.read(found, lambda s: (r * until) @ s)), *pair
    keep = torch.exp(sums.total(log_w, size)).unsqueeze(-1)  # (blocks or 1, H, key, 1)
    add = (k * since).mT @ v  # (blocks, H, key, value)
    entering, wkv = chain(state[0], lambda s, n: at(n, keep) * s + at(n, add), add.shape[0])
    return unblocked(scores @ v + (r * until) @ entering), wkv
