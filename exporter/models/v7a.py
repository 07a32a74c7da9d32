"""RWKV-7a: RWKV-7 whose feed-forward is scaled by a matrix looked up by token id (DeepEmbed)."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporter.contract import Dimensions, Entry, Layout, ModelSpec, Spelling, Weights
from exporter.models import layout as lay
from exporter.models import v7
from exporter.models.layers import Linear, TokenShift, embedded, flat, project, step_model, transposed
from exporter.models.parameters import Take
from exporter.models.primitives import VecMat, last

VERSIONS = ("7a",)


def matches(names: Collection[str]) -> str | None:
    """7a is v7 with deep embeddings."""
    return "7a" if "blocks.0.att.r_k" in names and "blocks.0.ffn.s_emb.weight" in names else None


def dimensions(version: str, *, layers: int, width: int, head_size: int, vocab: int) -> Dimensions:
    """v7's sizes; the deep embedding of a token is a 32 x 32 matrix."""
    d = v7.dimensions(version, layers=layers, width=width, head_size=head_size, vocab=vocab)
    return Dimensions(layers, width, head_size, d.ffn, vocab, {**d.ranks, "s": 32})


def layout(version: str, d: Dimensions) -> Layout:
    """v7's tensors and the deep embedding's."""
    ranks = {name: rank for name, rank in d.ranks.items() if name != "s"}
    entries = dict(v7.layout(version, Dimensions(d.layers, d.width, d.head_size, d.ffn, d.vocab, ranks)))
    s = d.ranks["s"]
    for i in range(d.layers):
        deep = {
            "s_emb.weight": Entry((d.vocab, s * s), lay.normal(0.1)),
            "s_emb_x.weight": Entry((s * s, d.width), lay.linear(d.width, 0.1)),
            "s1": Entry((d.width, s), lay.linear(d.width)),
            "s2": Entry((s, d.ffn), lay.linear(s)),
            "s0": Entry((1, 1, d.ffn), lay.full(1.0)),
        }
        entries |= lay.scoped(f"blocks.{i}.ffn", deep)
    return entries


def spec(version: str, weights: Weights, ln_x_eps: float) -> ModelSpec:
    """Dimensions from the shapes; the state is v7's."""
    d = v7.measure(weights)
    _, s = lay.shape(weights, "blocks.0.ffn.s1", 2)
    d = Dimensions(d.layers, d.width, d.head_size, d.ffn, d.vocab, {**d.ranks, "s": s})
    lay.check(weights, layout(version, d), version)
    return v7.describe(version, d, ln_x_eps)


def build(spec: ModelSpec, weights: Weights, spelling: Spelling) -> nn.Module:
    """The step module, parameters on the meta device."""
    root = Take(weights)

    def mixes(block: Take, i: int) -> tuple[nn.Module, nn.Module]:
        return v7.TimeMix(block.at("att"), i, spec, spelling), DeepChannelMix(block.at("ffn"), root, spelling)

    return step_model(spec, weights, spelling, mixes)


def folded(s_emb: Tensor, emb: Tensor, s_emb_x: Tensor, *ln0: Tensor) -> Tensor:
    """s_emb[token] + s_emb_x @ e for every token, (V, s*s): e, what enters block 0, depends on the token alone."""
    return s_emb + F.linear(embedded(emb, *ln0), s_emb_x)


class DeepChannelMix(nn.Module):
    """V @ (relu(K @ xk)^2 * (((x @ s1) @ D[token]) @ s2 + s0)), D[token] an s x s matrix."""

    def __init__(self, take: Take, root: Take, spelling: Spelling) -> None:
        super().__init__()
        self.shift = TokenShift(k=take("x_k", fn=flat))
        self.key, self.value = project(take, "key"), project(take, "value")
        ln0 = ["blocks.0.ln0.weight", "blocks.0.ln0.bias"]
        others = [take.scope + "s_emb_x.weight", *(ln0 if root.has(ln0[0]) else [])]
        self.deep = root.by_rows([take.scope + "s_emb.weight", "emb.weight"], *others, fn=folded)
        self.down = Linear(take("s1", fn=transposed))
        self.up = Linear(take("s2", fn=transposed), take("s0", fn=flat))
        self.turn = VecMat(self.down.weight.shape[0], spelling)

    def forward(self, tokens: Tensor, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (T,), x (T, C), shift (1, C) -> what is added to the residual (T, C), the new shift (1, C)."""
        k = torch.relu(self.key(self.shift(x, shift)[0]))
        small = self.down(x)  # (T, s)
        size = small.shape[1]
        matrices = F.embedding(tokens, self.deep).reshape(-1, 1, size, size)  # (T, 1, s, s)
        if x.shape[0] == 1:
            turned = self.turn(small.reshape(1, 1, size), matrices)
        else:
            turned = small.reshape(-1, 1, 1, size) @ matrices
        return self.value(k * k * self.up(turned.reshape(-1, size))), last(x)
