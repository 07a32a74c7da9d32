"""What the versions trained here share: sizes, the residual frame, shifts, projections; it holds no recurrence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LN_X_EPS = 64e-5  # that of the official inference code
CHUNK = 16  # tokens that every recurrence takes at once


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model; width is a multiple of head_size, ranks are those of the adapters that the version has."""

    layers: int
    width: int
    ffn: int
    vocab: int = 257
    head_size: int = 64
    rank: int = 16
    gate_rank: int = 32
    dropout: float = 0.0


Mix = Callable[[Shape, int], nn.Module]  # (shape, layer) -> that layer's time or channel mix


class Block(nn.Module):
    """One layer: both mixes on a residual stream."""

    def __init__(self, shape: Shape, layer: int, time_mix: Mix, channel_mix: Mix) -> None:
        super().__init__()
        if layer == 0:
            self.ln0 = nn.LayerNorm(shape.width)
        self.ln1, self.ln2 = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.att = time_mix(shape, layer)
        self.ffn = channel_mix(shape, layer)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x (batch, time, width) -> the same; first is what RWKV-7 hands from its first layer to the others."""
        mixed, first = self.att(self.ln1(x), first)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.ffn(self.ln2(x))), first


class LanguageModel(nn.Module):
    """Embedding, blocks, head; its state_dict is a BlinkDL checkpoint."""

    def __init__(self, shape: Shape, time_mix: Mix, channel_mix: Mix) -> None:
        super().__init__()
        self.emb = nn.Embedding(shape.vocab, shape.width)
        nn.init.uniform_(self.emb.weight, -1e-4, 1e-4)
        self.blocks = nn.ModuleList(Block(shape, layer, time_mix, channel_mix) for layer in range(shape.layers))
        self.ln_out = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocab, bias=False)
        nn.init.orthogonal_(self.head.weight, 0.5 * math.sqrt(max(shape.vocab / shape.width, 1.0)))
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, time) ids -> (batch, time, vocab) logits, every sequence from the zero state."""
        x = self.dropout(cast(Block, self.blocks[0]).ln0(self.emb(tokens)))
        first = None
        for block in self.blocks:
            x, first = block(x, first)
        logits: Tensor = self.head(self.ln_out(x))
        return logits


class GatedChannelMix(nn.Module):
    """The feed-forward of RWKV-4 to 6, squared ReLU under a sigmoid gate; a version says how it shifts tokens."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.key = linear(shape.width, shape.ffn, 0.5)
        self.value = linear(shape.ffn, shape.width, 0.0)
        self.receptance = linear(shape.width, shape.width, 0.0)

    def shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time, width) -> the inputs of key and receptance."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> the same."""
        xk, xr = self.shift(x)
        out: Tensor = torch.sigmoid(self.receptance(xr)) * self.value(torch.relu(self.key(xk)) ** 2)
        return out


def shifted(x: Tensor) -> Tensor:
    """Each position's predecessor, zeros at the start."""
    return F.pad(x, (0, 0, 1, -1))


def split_heads(x: Tensor, size: int) -> Tensor:
    """(batch, time, width) -> (batch, head, time, size), float32."""
    return x.float().reshape(*x.shape[:2], -1, size).transpose(1, 2)


def merge_heads(y: Tensor, norm: nn.GroupNorm) -> Tensor:
    """(batch, head, time, size) -> (batch, time, width), every head of every token normalised by itself."""
    batch, _, time, _ = y.shape
    out: Tensor = norm(y.transpose(1, 2).flatten(0, 1).flatten(1))
    return out.view(batch, time, -1)


def head_norm(shape: Shape, layer: int) -> nn.GroupNorm:
    """A norm a head, its initial scale growing with depth."""
    norm = nn.GroupNorm(shape.width // shape.head_size, shape.width, eps=LN_X_EPS)
    nn.init.constant_(norm.weight, ((1 + layer) / shape.layers) ** 0.7)
    return norm


def vector(values: Tensor) -> nn.Parameter:
    """A per-channel parameter with these initial values in memory of its own, stored (1, 1, width)."""
    return nn.Parameter(values.float().reshape(1, 1, -1).clone())


def low_rank(width: int, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """The (width, rank) and (rank, width) halves of an adapter that starts at zero."""
    second = torch.empty(rank, width)
    nn.init.orthogonal_(second, 0.1)
    return nn.Parameter(torch.zeros(width, rank)), nn.Parameter(second)


def linear(inputs: int, outputs: int, scale: float) -> nn.Linear:
    """A projection without bias, uniform in +-scale / sqrt(width)."""
    layer = nn.Linear(inputs, outputs, bias=False)
    bound = scale / math.sqrt(min(inputs, outputs))
    nn.init.uniform_(layer.weight, -bound, bound)
    return layer
