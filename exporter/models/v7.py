"""RWKV-7: the state is decayed, corrected by a rank-one term and written, then read; S is [value, key]."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from exporter.contract import Dimensions, Entry, Layout, ModelSpec, Spelling, Weights
from exporter.models import layout as lay
from exporter.models import pairs
from exporter.models.blocks import BlockRecurrence, before, blocked, chain, identity, inverse, positions, unblocked
from exporter.models.layers import (
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
from exporter.models.primitives import L2Normalise, MatVec, OuterDifference, Reduce, TokenSums, at, column, last, row

VERSIONS = ("7",)

DECAY = -math.exp(-0.5)  # w = exp(DECAY * sigmoid(.)) is the training code's exp(-exp(-softplus(-.) - 0.5))


def matches(names: Collection[str]) -> str | None:
    """The bonus r_k is what no older version has."""
    return "7" if "blocks.0.att.r_k" in names else None


def dimensions(version: str, *, layers: int, width: int, head_size: int, vocab: int) -> Dimensions:
    """Official sizes: ffn 4x; LoRA ranks grow with the square root of the width, in steps of 32."""

    def rank(factor: float, power: float) -> int:
        return max(32, 32 * round(factor * math.pow(width, power) / 32))

    ranks = {"w": rank(1.8, 0.5), "a": rank(1.8, 0.5), "v": rank(1.3, 0.5), "g": rank(0.6, 0.8)}
    return Dimensions(layers, width, head_size, 4 * width, vocab, ranks)


def layout(version: str, d: Dimensions) -> Layout:
    """Tensors and their fills, after RWKV-LM's RWKV-v7 initialisation, its zeros replaced by trained scales."""
    entries = lay.common(d)
    for i in range(d.layers):
        ffn = lay.feed_forward(d) | {"x_k": Entry((1, 1, d.width), lay.uniform(0.0, 1.0))}
        entries |= lay.scoped(f"blocks.{i}.att", _attention(d, i)) | lay.scoped(f"blocks.{i}.ffn", ffn)
    return entries


def _attention(d: Dimensions, i: int) -> dict[str, Entry]:
    vector = (1, 1, d.width)
    entries = lay.square(d, "receptance", "key", "value", "output") | {
        **{f"x_{name}": Entry(vector, lay.uniform(0.0, 1.0)) for name in "rwkvag"},
        "w0": Entry(vector, lay.ramp(-5.5, 0.5, 1.0 + (i / max(d.layers - 1, 1)) ** 0.3)),
        "a0": Entry(vector, lay.uniform(-0.5, 0.5)),
        "v0": Entry(vector, lay.uniform(0.5, 1.0), ignored=i == 0),
        "k_k": Entry(vector, lay.uniform(0.6, 0.85)),
        "k_a": Entry(vector, lay.full(1.02)),
        "r_k": Entry((d.width // d.head_size, d.head_size), lay.normal(0.05)),
        "ln_x.weight": Entry((d.width,), lay.full(((1 + i) / d.layers) ** 0.7)),
        "ln_x.bias": Entry((d.width,), lay.full(0.0)),
    }
    for name, rank in d.ranks.items():
        dummy = name == "v" and i == 0  # some checkpoints carry copies of a0..a2 here
        entries[f"{name}1"] = Entry((d.width, rank), lay.linear(d.width, 0.5), ignored=dummy)
        entries[f"{name}2"] = Entry((rank, d.width), lay.linear(rank, 0.5), ignored=dummy)
    return entries


def spec(version: str, weights: Weights, ln_x_eps: float) -> ModelSpec:
    """Dimensions from the shapes; state matrices are indexed [value, key]."""
    d = measure(weights)
    lay.check(weights, layout(version, d), version)
    return describe(version, d, ln_x_eps)


def measure(weights: Weights) -> Dimensions:
    """Dimensions of a checkpoint; the rank of v is a layer 1 matter, since layer 0 has none."""
    vocab, width = lay.shape(weights, "emb.weight", 2)
    layers = lay.count_layers(weights)
    ffn, _ = lay.shape(weights, "blocks.0.ffn.key.weight", 2)
    _, size = lay.heads(weights, "blocks.0.att.r_k", width)
    ranks = {name: lay.shape(weights, f"blocks.0.att.{name}1", 2)[1] for name in "wag"}
    ranks["v"] = lay.shape(weights, "blocks.1.att.v1", 2)[1] if layers > 1 else 1
    return Dimensions(layers, width, size, ffn, vocab, ranks)


def describe(version: str, d: Dimensions, ln_x_eps: float) -> ModelSpec:
    """The spec of a model of these dimensions."""
    heads = d.width // d.head_size
    state = matrix_states(d.layers, d.width, heads, ("value", "key"))
    return ModelSpec(version, d.layers, d.width, heads, d.head_size, d.vocab, ln_x_eps, state)


def build(spec: ModelSpec, weights: Weights, spelling: Spelling) -> nn.Module:
    """The step module, parameters on the meta device."""

    def mixes(block: Take, i: int) -> tuple[nn.Module, nn.Module]:
        return TimeMix(block.at("att"), i, spec, spelling), ChannelMix(block.at("ffn"))

    return step_model(spec, weights, spelling, mixes)


class Lora(nn.Module):
    """up(activation(down(x))), the bias of `up` being the constant the low-rank term is added to."""

    def __init__(self, take: Take, name: str, activation: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        bias = take(f"{name}0", fn=flat) if take.has(f"{name}0") else None
        self.down = Linear(take(f"{name}1", fn=transposed))
        self.up = Linear(take(f"{name}2", fn=transposed), bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(T, C) -> (T, C)."""
        hidden = self.down(x)
        up: Tensor = self.up(hidden if self.activation is None else self.activation(hidden))
        return up


def one_minus(k_a: Tensor) -> Tensor:
    """k * (1 + (a-1) k_a) is taken as k * (a k_a + (1 - k_a)), which has no scalar constant."""
    return 1.0 - k_a.reshape(-1)


class TimeMix(nn.Module):
    """S = S diag(w) - (S kk)(kk a)^T + v k^T, then y = S r, normalised, plus the bonus (r . k r_k) v, gated."""

    def __init__(self, take: Take, layer: int, spec: ModelSpec, spelling: Spelling) -> None:
        super().__init__()
        self.heads, self.size = spec.heads, spec.head_size
        self.shift = TokenShift(**{name: take(f"x_{name}", fn=flat) for name in "rwkvag"})
        linears = ("receptance", "key", "value", "output")
        self.receptance, self.key, self.value, self.output = (project(take, name) for name in linears)
        self.w, self.a = Lora(take, "w", torch.tanh), Lora(take, "a")
        self.g = Lora(take, "g", torch.sigmoid)
        self.v = Lora(take, "v") if layer > 0 else None
        self.k_k, self.k_a = take("k_k", fn=flat), take("k_a", fn=flat)
        self.k_b = take("k_a", fn=one_minus)
        self.r_k = take("r_k")
        self.normalise = L2Normalise(spec.head_size, spelling)
        self.dot = Reduce(spec.head_size, spelling)
        self.recurrence = Recurrence(spec, spelling)
        self.ln_x = head_norm(take, spec, spelling)

    def forward(self, x: Tensor, first: Tensor | None, shift: Tensor, *wkv: Tensor) -> tuple[Tensor | None, ...]:
        """x, first (T, C), shift (1, C), wkv (1, H, N value, N key) or a pair -> added (T, C), first, shift, wkv."""
        xr, xw, xk, xv, xa, xg = self.shift(x, shift)
        heads = (-1, self.heads, self.size)
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        log_w = DECAY * torch.sigmoid(self.w(xw))  # in (-0.607, 0)
        a = torch.sigmoid(self.a(xa))
        kk = self.normalise((k * self.k_k).reshape(heads))  # of the key before it is scaled below
        k = k * (a * self.k_a + self.k_b)
        if self.v is None:
            first = v
        else:
            v = v + (first - v) * torch.sigmoid(self.v(xv))
        r, log_w, k, v, a = (tensor.reshape(heads) for tensor in (r, log_w, k, v, a))
        y, *new = self.recurrence(r, log_w, k, v, kk, kk * a, *wkv)
        bonus = self.dot(r * k * self.r_k) * v  # (T, H, N)
        y = self.ln_x(y) + bonus.reshape(-1, self.heads * self.size)
        return self.output(y * self.g(xg)), first, last(x), *new


class Recurrence(BlockRecurrence):
    """S = S diag(w) - (S kk) b^T + v k^T, read after that: (r, log_w, k, v, kk, b, S) -> (y, S); S is [value, key].

    Vectors are (T, H, N), y too; S is (1, H, N value, N key), or a pair of such.
    """

    idle_zeros = True

    def __init__(self, spec: ModelSpec, spelling: Spelling) -> None:
        super().__init__(given=6, block=spelling.block)
        self.times, self.outer = MatVec(spec.head_size, spelling), OuterDifference(spelling)
        self.sums = TokenSums(spelling)

    def step(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """One token."""
        r, log_w, k, v, kk, b, wkv, *low = tensors
        if low:
            decayed = row(pairs.gone(log_w))
            vk = column(v) * row(k)
            pair = pairs.changed((wkv, *low), lambda s: -(s * decayed) - self.times(s, kk) * row(b), vk)
            return pairs.read(pair, lambda s: self.times(s, r)).reshape(r.shape), *pair
        removed = self.times(wkv, kk)  # (1, H, value, 1)
        wkv = wkv * row(torch.exp(log_w)) + self.outer(column(v), k, removed, b)
        return self.times(wkv, r).reshape(r.shape), wkv

    def solve(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Every block as y = R S^T + Y and S' = S M + D of the state S that enters it.

        What its tokens remove, U[t] = S[t-1] kk[t], solves U = A U + (...) with A strictly lower: U is (I - A)^-1 of
        what the entering state and the values give, each apart.
        """
        given, (wkv, *low) = tensors[: self.given], tensors[self.given :]
        size = min(self.block, given[0].shape[0])
        r, log_w, k, v, kk, b = (blocked(x, size) for x in given)  # (blocks, H, size, N)
        sums = self.sums(from_the_middle(size, log_w), log_w)
        w = torch.exp(sums)  # (blocks, H, size + 1, N)
        start, end, old, new = w[:, :, :1], w[:, :, size:], w[:, :, :size], w[:, :, 1:]
        r, kk, k, b = r * new, kk * old, k / new, -b / new
        past = before(size, w)
        solved = inverse(kk @ b.mT)
        by_state, by_values = solved @ (kk / start), solved @ (kk @ k.mT * past @ v)  # U = by_state S^T + by_values
        present = past + identity(size, w)
        rb, rk = r @ b.mT * present, r @ k.mT * present
        y, reading = rb @ by_values + rk @ v, r / start + rb @ by_state
        k, b = k * end, b * end
        scale = -pairs.gone(sums[:, :, size:] - sums[:, :, :1]) if low else end / start  # of the change, of the state
        move = identity(k.shape[-1], w) * scale + by_state.mT @ b  # (blocks, H, key, key)
        add = by_values.mT @ b + v.mT @ k  # (blocks, H, value, key)
        if low:
            found, pair = pairs.chain((wkv, *low), lambda n, s: s @ at(n, move), lambda n: at(n, add), move.shape[0])
            return unblocked(pairs.read(found, lambda s: reading @ s.mT) + y), *pair
        entering, wkv = chain(wkv, lambda s, n: s @ at(n, move) + at(n, add), move.shape[0])
        return unblocked(reading @ entering.mT + y), wkv


def from_the_middle(size: int, like: Tensor) -> Tensor:
    """Signs of the tokens between a block's middle and each of its size + 1 boundaries, (boundary, token).

    Exponents counted from there stay within half a block's: e^(0.607 * 16) at 32 tokens, in either direction.
    """
    boundary, token, middle = positions(size + 1, like)[:, None], positions(size, like), size // 2
    ahead, behind = (middle <= token) & (token < boundary), (boundary <= token) & (token < middle)
    return ahead.to(like.dtype) - behind.to(like.dtype)


class ChannelMix(nn.Module):
    """V @ relu(K @ xk)^2: no receptance since v7."""

    def __init__(self, take: Take) -> None:
        super().__init__()
        self.shift = TokenShift(k=take("x_k", fn=flat))
        self.key, self.value = project(take, "key"), project(take, "value")

    def forward(self, tokens: Tensor, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """x (T, C), shift (1, C) -> what is added to the residual (T, C), the new shift (1, C)."""
        k = torch.relu(self.key(self.shift(x, shift)[0]))
        return self.value(k * k), last(x)
