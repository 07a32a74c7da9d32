"""A plain decoder with a KV cache, random weights, exported as one ONNX step; and the same in torch to check it by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtimes.errors import WrongCall

HEAD = 64  # channels
ROPE_BASE = 10_000.0  # Su et al. 2021, arXiv:2104.09864
OPSET = 18  # what RWKV's graph is exported with
STEP = 8  # feed-forward channels
SAME_SIZE = 0.02  # largest relative difference in parameters

Attend = Callable[[int, Tensor], Tensor]
"""Layer and packed q, k, v (T, (heads + 2 kv_heads) 64) -> what its heads read (T, heads 64)."""


@dataclass(frozen=True)
class Shape:
    """capacity: tokens the cache has room for; kv_heads: heads of keys and values, shared by `width / 64` queries."""

    layers: int
    width: int
    vocab: int
    kv_heads: int
    capacity: int
    ffn: int = 0

    @property
    def heads(self) -> int:
        return self.width // HEAD

    @property
    def cache_shape(self) -> tuple[int, ...]:
        """Of one layer's keys, and of its values."""
        return 1, self.kv_heads, self.capacity, HEAD

    def ports(self) -> list[str]:
        """Cache tensors in graph order."""
        return [f"{kind}{layer}" for layer in range(self.layers) for kind in ("key", "value")]


class Block(nn.Module):
    """Pre-norm attention, then pre-norm SwiGLU, both residual; no biases but the norms'."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, packed = shape.width, shape.width + 2 * shape.kv_heads * HEAD
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, packed, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * shape.ffn, bias=False), nn.Linear(shape.ffn, width, bias=False)

    def forward(self, x: Tensor, layer: int, attend: Attend) -> Tensor:
        """(T, C) -> (T, C)."""
        x = x + self.out(attend(layer, self.qkv(self.ln1(x))))
        gate, up = self.up(self.ln2(x)).chunk(2, dim=-1)
        down: Tensor = self.down(F.silu(gate) * up)
        return x + down


class Decoder(nn.Module):
    """forward() is the exported step; reference() computes the same with torch's own attention."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.emb = nn.Embedding(shape.vocab, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.ln_out, self.head = nn.LayerNorm(shape.width), nn.Linear(shape.width, shape.vocab, bias=False)
        turns = ROPE_BASE ** (-torch.arange(0, HEAD, 2) / HEAD)
        angles = torch.outer(torch.arange(shape.capacity).float(), turns)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, token: Tensor, last: Tensor, total: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        """token (1,) int64, its position `last` (1,) int32, tokens with it `total` () int32 -> logits (1, V), cache."""
        new: list[Tensor] = []

        def attend(layer: int, qkv: Tensor) -> Tensor:
            key, value = cache[2 * layer : 2 * layer + 2]
            y, *pair = torch.onnx.ops.symbolic_multi_out(
                "com.microsoft::GroupQueryAttention",
                [qkv[None], None, None, key, value, last, total, self.cos, self.sin],
                {"num_heads": self.shape.heads, "kv_num_heads": self.shape.kv_heads, "do_rotary": 1},
                dtypes=[torch.float32] * 3,
                shapes=[(1, 1, self.shape.width), key.shape, value.shape],
                version=1,
            )
            new.extend(pair)
            return y.reshape(1, self.shape.width)

        return self._logits(token, attend), *new

    def reference(self, tokens: Tensor, past: Sequence[Tensor] | None = None) -> Tensor:
        """tokens (T,) after `past` (keys and values by layer, (1, kv_heads, P, 64)) -> logits (T, V)."""
        start = past[0].shape[2] if past else 0
        places = slice(start, start + len(tokens))
        seen = torch.ones(len(tokens), start + len(tokens), dtype=torch.bool).tril(start)  # (query, key)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            heads = qkv.reshape(1, len(tokens), -1, HEAD).transpose(1, 2)
            q, k, v = torch.split(heads, [self.shape.heads, self.shape.kv_heads, self.shape.kv_heads], dim=1)
            q, k = (self._rotated(vectors, places) for vectors in (q, k))
            if past:
                k, v = (torch.cat(pair, 2) for pair in zip(past[2 * layer : 2 * layer + 2], (k, v), strict=True))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
            return y.transpose(1, 2).reshape(len(tokens), -1)

        return self._logits(tokens, attend)

    def _logits(self, tokens: Tensor, attend: Attend) -> Tensor:
        x = self.emb(tokens)
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, attend)
        logits: Tensor = self.head(self.ln_out(x))
        return logits

    def _rotated(self, x: Tensor, places: slice) -> Tensor:
        """x (1, H, T, 64): channels i and i + 32 turn together."""
        cos, sin = self.cos[places], self.sin[places]
        one, other = x.chunk(2, dim=-1)
        return torch.cat((one * cos - other * sin, other * cos + one * sin), dim=-1)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def sized_like(shape: Shape, wanted: int) -> Shape:
    """`shape` with the feed-forward width that makes it `wanted` parameters; raises WrongCall where none does."""
    if shape.width % HEAD or not 0 < shape.kv_heads <= shape.heads or shape.heads % shape.kv_heads:
        raise WrongCall(f"{shape.kv_heads} heads of keys cannot serve {shape.width / HEAD:g} heads of queries")
    least, step = replace(shape, ffn=STEP), STEP * 3 * shape.width * shape.layers  # gate, up, down
    with torch.device("meta"):
        missing = wanted - parameters(Decoder(least))
    made = replace(shape, ffn=STEP * (1 + max(0, round(missing / step))))
    with torch.device("meta"):
        own = parameters(Decoder(made))
    if abs(own / wanted - 1) > SAME_SIZE:
        raise WrongCall(f"{own:,} parameters are the nearest to RWKV's {wanted:,}", hint="choose a wider model")
    return made


def make(shape: Shape, seed: int = 0) -> Decoder:
    """Random weights, torch's own initial scales."""
    torch.manual_seed(seed)
    return Decoder(shape).eval().requires_grad_(False)


def export(model: Decoder, path: Path) -> Path:
    """Write the step to `path`, its weights beside it, by the calls and passes RWKV's graph goes through."""
    from exporter import graph
    from exporter.passes import onnx_tidy, onnx_weights
    from exporter.progress import silent
    from exporter.quiet import quiet

    cache = [torch.zeros(model.shape.cache_shape) for _ in model.shape.ports()]
    inputs = (torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int32), torch.ones((), dtype=torch.int32))
    names = model.shape.ports()
    with quiet():
        exported = torch.onnx.export(
            graph.trace(model, (*inputs, *cache)),
            (*inputs, *cache),
            dynamo=True,
            opset_version=OPSET,
            input_names=["token", "last", "total", *(f"past_{name}" for name in names)],
            output_names=["logits", *(f"present_{name}" for name in names)],
            optimize=False,
            verbose=False,
        )
    made = cast("torch.onnx.ONNXProgram", exported).model  # None only where a path is given
    onnx_tidy.tidy(made)
    onnx_tidy.strip(made)
    onnx_weights.save_with_data(made, path, f"{path.name}.data", silent)
    return path
