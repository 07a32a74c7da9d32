"""Cuts a step between blocks into pieces that are small enough for a package each; it converts nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporter.contract import Job, ModelSpec, Option
from exporter.models.layers import StepModel
from exporter.models.primitives import last

GIGABYTE = 1e9
AUTO = 0.9  # GB: larger packages are reported to leave the Neural Engine, or to be killed for memory on a phone
CHUNK = Option(
    "chunk",
    ("auto", "none", "0.1", "0.3", "0.9", "1.8"),
    "auto",
    "most GB of a package before weights are compressed, cut between layers; auto is 0.9",
)


class Piece(nn.Module):
    """Blocks `start` to `stop` of a step, the first with the embedding, the last with the head.

    (tokens, *hidden, *their state) -> (*hidden or logits, *their new state). Hidden is what the blocks before give: x
    (T, C), and where layer 0 hands something to all later layers of the same tokens, that, (T, C). Only the first of
    several pieces gives the latter.

    handed: whether layer 0 does, and there are several pieces
    ranges: of what projections take, by their weights as identifiers, where they were looked for
    """

    ranges: Mapping[str, tuple[float, float]] = {}

    def __init__(self, model: StepModel, spec: ModelSpec, start: int, stop: int, *, handed: bool) -> None:
        super().__init__()
        self.start, self.stop, self.state_per_block = start, stop, len(spec.state) // spec.layers
        self.handed = handed
        self.blocks = model.blocks[start:stop]
        self.emb = model.emb if start == 0 else None
        self.last = stop == len(model.blocks)
        if self.last:
            self.ln_out, self.head = model.ln_out, model.head

    def in_step(self, name: str) -> str:
        """What a parameter is called in the whole step, which counts all blocks."""
        return re.sub(r"^blocks\.(\d+)", lambda own: f"blocks.{int(own[1]) + self.start}", name)

    def forward(self, tokens: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """tokens (T,), hidden (T, C), state -> hidden (T, C) or logits (1, V), state."""
        count = len(self.blocks) * self.state_per_block
        hidden, state = tensors[: len(tensors) - count], tensors[len(tensors) - count :]
        x, first = (F.embedding(tokens, self.emb), None) if self.emb is not None else (hidden[0], None)
        if len(hidden) > 1:
            first = hidden[1]
        new: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            old = state[i * self.state_per_block : (i + 1) * self.state_per_block]
            x, first, own = block(tokens, x, first, *old)
            new += own
        if self.last:
            return (self.head(self.ln_out(last(x))), *new)
        return (x, first, *new) if self.handed and first is not None and self.emb is not None else (x, *new)


def whole(model: StepModel, spec: ModelSpec) -> list[Piece]:
    """The step in one piece."""
    return [Piece(model, spec, 0, len(model.blocks), handed=False)]


def chosen(job: Job) -> list[Piece]:
    """The step as CHUNK wants it: in one piece where it is small enough, or where nothing is to be cut."""
    model, budget = cast(StepModel, job.model), job.options[CHUNK.name]
    if budget == "none":
        return whole(model, job.spec)
    width = 4 if job.precision == "fp32" else 2
    return pieces(model, job.spec, AUTO if budget == "auto" else float(budget), width=width)


def numbered(file: str, count: int) -> list[str]:
    """Names of the packages that a package is cut into."""
    stem, _, ending = file.rpartition(".")
    return [f"{stem}-{number}of{count}.{ending}" for number in range(1, count + 1)] if count > 1 else [file]


def pieces(model: StepModel, spec: ModelSpec, budget: float, *, width: int) -> list[Piece]:
    """The step cut so that no piece has more than `budget` GB of parameters of `width` bytes, but for single blocks."""
    sizes = [_count(block) for block in model.blocks]
    sizes[0] += model.emb.numel()
    sizes[-1] += _count(model.ln_out) + _count(model.head)
    cuts, size = [0], 0.0
    for i, own in enumerate(sizes):
        if size and (size + own) * width > budget * GIGABYTE:
            cuts.append(i)
            size = 0.0
        size += own
    if len(cuts) == 1:
        return whole(model, spec)
    handed = _hands(model, spec)
    ends = [*cuts[1:], len(sizes)]
    return [Piece(model, spec, start, stop, handed=handed) for start, stop in zip(cuts, ends, strict=True)]


def _hands(model: StepModel, spec: ModelSpec) -> bool:
    """Whether layer 0 hands something to all later layers; nothing is computed."""
    with torch.device("meta"):
        state = [torch.empty(tensor.shape) for tensor in spec.state[: len(spec.state) // spec.layers]]
        _, first, _ = model.blocks[0](torch.empty(1, dtype=torch.int32), torch.empty(1, spec.width), None, *state)
    return first is not None


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
