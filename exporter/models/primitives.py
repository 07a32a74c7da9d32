"""The few operations whose spelling differs between compilers; every spelling computes the same function."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporter.contract import Spelling
from exporter.models.parameters import constant

_mask: ContextVar[Tensor | None] = ContextVar("mask", default=None)


@contextmanager
def masking(mask: Tensor) -> Iterator[None]:
    """Within the block only those of several tokens count that `mask` (T,) has ones for, not zeros; they come first.

    The others leave no trace in the state, and the newest token is the newest that counts.
    """
    before = _mask.set(mask)
    try:
        yield
    finally:
        _mask.reset(before)


def mask_of(x: Tensor) -> Tensor | None:
    """Which of the tokens of x (T, ...) count, in as many axes, (T, 1, ...); None where all do."""
    mask = _mask.get()
    return None if mask is None else mask.reshape(-1, *[1] * (x.dim() - 1))


class Reduce(nn.Module):
    """Sum over the last axis, kept, times `scale`: (..., n) -> (..., 1)."""

    def __init__(self, size: int, spelling: Spelling, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.row = constant(torch.full((1, size), scale)) if spelling.reduce == "linear" else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., 1)."""
        if self.row is not None:
            return F.linear(x, self.row)
        total: Tensor = x.sum(-1, keepdim=True)
        return total if self.scale == 1.0 else torch.mul(total, self.scale)


class TokenSums(nn.Module):
    """Sums over the tokens of a block: (blocks, H, tokens, N) -> (blocks, H, sums, N), or all as (blocks, H, N)."""

    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.linear = spelling.reduce == "linear"

    def alike(self, row: Tensor, tokens: int) -> Tensor:
        """What stands for so many equal tokens, (1, H, 1, N) -> (1, H, tokens, N); for a linear the row itself."""
        return row if self.linear else row.expand(-1, -1, tokens, -1)

    def forward(self, signs: Tensor, x: Tensor) -> Tensor:
        """A sum for each row of the constant `signs` (sums, tokens), which says what a token counts in it."""
        if not self.linear:
            return torch.matmul(signs, x)
        if x.shape[2] == 1:
            signs = signs.sum(-1, keepdim=True)
        sums: Tensor = F.linear(x.mT, signs).mT
        return sums

    def total(self, x: Tensor, tokens: int) -> Tensor:
        """Of all tokens."""
        if not self.linear:
            return x.sum(2)
        one: Tensor = self(torch.ones(1, tokens, dtype=x.dtype, device=x.device), x)
        return one.squeeze(2)

    def levels(self, x: Tensor) -> Tensor:
        """(blocks, H, levels, tokens, tokens) -> (blocks, H, tokens, tokens)."""
        if not self.linear:
            return x.sum(2)
        first, *others = (x[:, :, level] for level in range(x.shape[2]))
        return sum(others, first)


def standardised(x: Tensor, mean: Reduce, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over the last axis, (..., n) -> (..., n)."""
    centred: Tensor = x - mean(x)
    inverse: Tensor = torch.rsqrt(mean(centred * centred) + eps)
    return centred * inverse


class LayerNorm(nn.Module):
    """Layer norm over the last axis with affine; eps inside the square root."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, eps: float, spelling: Spelling) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = weight, bias, eps
        size = weight.shape[0]
        self.mean = Reduce(size, spelling, 1.0 / size) if spelling.norm == "linear" else None

    def forward(self, x: Tensor) -> Tensor:
        """(T, C) -> (T, C)."""
        if self.mean is None:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return standardised(x, self.mean, self.eps) * self.weight + self.bias


class HeadNorm(nn.Module):
    """Group norm with one group a head, then the affine over channels ("ln_x").

    Written as a layer norm per head: one compiler is silently wrong with group_norm, and a fused layer norm keeps
    the squares of the differences out of fp16's range.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, heads: int, eps: float, spelling: Spelling) -> None:
        super().__init__()
        self.weight, self.bias, self.heads, self.eps = weight, bias, heads, eps
        self.size = weight.shape[0] // heads
        affine = spelling.head_norm == "layer_norm_affine"
        self.ones = constant(torch.ones(self.size)) if affine else None
        self.zeros = constant(torch.zeros(self.size)) if affine else None
        self.mean = Reduce(self.size, spelling, 1.0 / self.size) if spelling.head_norm == "linear" else None

    def forward(self, y: Tensor) -> Tensor:
        """(T, H, N) -> (T, C)."""
        if self.mean is None:
            normed = F.layer_norm(y, (self.size,), self.ones, self.zeros, self.eps)
        else:
            normed = standardised(y, self.mean, self.eps)
        return normed.reshape(-1, self.heads * self.size) * self.weight + self.bias


class L2Normalise(nn.Module):
    """x / ||x|| over the last axis; `spelling.l2_eps` keeps a dead head at zero instead of NaN."""

    def __init__(self, size: int, spelling: Spelling) -> None:
        super().__init__()
        self.eps = spelling.l2_eps
        self.sum = Reduce(size, spelling)

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., n)."""
        inverse: Tensor = torch.rsqrt(self.sum(x * x) + self.eps)
        return x * inverse


class MatVec(nn.Module):
    """M v over the matrix's last axis: (1, H, A, B), (1, H, B) -> (1, H, A, 1)."""

    def __init__(self, size: int, spelling: Spelling) -> None:
        super().__init__()
        self.sum = Reduce(size, spelling) if spelling.contract == "multiply" else None
        self.from_the_left = spelling.contract == "row"

    def forward(self, matrix: Tensor, vector: Tensor) -> Tensor:
        """(1, H, A, B), (1, H, B) -> (1, H, A, 1)."""
        if self.from_the_left:
            return (row(vector) @ matrix.mT).reshape(*matrix.shape[:3], 1)
        if self.sum is None:
            return matrix @ column(vector)
        total: Tensor = self.sum(matrix * row(vector))
        return total


class OuterDifference(nn.Module):
    """a b^T - c d^T: (1, H, A, 1), (1, H, B), (1, H, A, 1), (1, H, B) -> (1, H, A, B).

    One matmul of rank two writes the matrix once, where two products and their difference write three.
    """

    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.multiply = spelling.contract != "matmul"

    def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        """(1, H, A, 1), (1, H, B), (1, H, A, 1), (1, H, B) -> (1, H, A, B)."""
        if self.multiply:
            return a * row(b) - c * row(d)
        return torch.cat([a, -c], 3) @ torch.cat([row(b), row(d)], 2)


class VecMat(nn.Module):
    """v M over the matrix's first axis: (1, H, A), (1, H, A, B) -> (1, H, B)."""

    def __init__(self, size: int, spelling: Spelling) -> None:
        super().__init__()
        self.sum = Reduce(size, spelling) if spelling.contract == "multiply" else None

    def forward(self, vector: Tensor, matrix: Tensor) -> Tensor:
        """(1, H, A), (1, H, A, B) -> (1, H, B)."""
        size = (1, matrix.shape[1], matrix.shape[3])
        if self.sum is None:
            return (row(vector) @ matrix).reshape(size)
        total: Tensor = self.sum((matrix * column(vector)).transpose(-1, -2))
        return total.reshape(size)


def row(vector: Tensor) -> Tensor:
    """(1, H, N) -> (1, H, 1, N)."""
    _, heads, size = vector.shape
    return vector.reshape(1, heads, 1, size)


def column(vector: Tensor) -> Tensor:
    """(1, H, N) -> (1, H, N, 1)."""
    _, heads, size = vector.shape
    return vector.reshape(1, heads, size, 1)


def previous(x: Tensor, shift: Tensor) -> Tensor:
    """The input one token earlier: x (T, C), shift (1, C) the last input before them -> (T, C)."""
    return shift if x.shape[0] == 1 else torch.cat([shift, x[:-1]], 0)


def last(x: Tensor) -> Tensor:
    """The newest row that counts, (T, C) -> (1, C), without an op when there is only one.

    Before the rows of tokens there may be others, which count.
    """
    mask = mask_of(x)
    if mask is None or x.shape[0] == 1:
        return x if x.shape[0] == 1 else x[-1:]
    newest = mask - torch.cat([mask[1:], torch.zeros_like(mask[:1])], 0)
    if others := x.shape[0] - mask.shape[0]:
        newest = torch.cat([torch.zeros_like(mask[:1])] * others + [newest], 0)
    return (x * newest).sum(0, keepdim=True)


def at(t: int, x: Tensor) -> Tensor:
    """One token as a slice, which every delegate takes, rather than an index: (T, ...) -> (1, ...)."""
    return x if x.shape[0] == 1 else x[t : t + 1]


def stack(rows: list[Tensor]) -> Tensor:
    """T tensors (1, ...) -> (T, ...)."""
    return rows[0] if len(rows) == 1 else torch.cat(rows, 0)
