"""PyTorch programs on a CUDA device: states stay there, and calls that come back are replayed as CUDA graphs.

A graph is one launch where a step of 12 layers has a thousand. It is recorded for a pair of states, when a call finds
the same two again, as every second call of a decode loop does.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from runtimes.buffers import Pool, Slot
from runtimes.contract import Array, TensorSpec
from runtimes.session import Tensors

MOST_RECORDED = 8
"""Pairs of states whose call is recorded."""

Pair = tuple[int, int]


def sum_widely() -> None:
    """Keep float32 products in float32, and sums of 16-bit products too: PyTorch lets cuBLAS round parts of those."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def pool(specs: list[TensorSpec], device: str) -> Pool:
    """Slots of tensors on the device."""

    def new(spec: TensorSpec) -> Tensor:
        return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=device)

    return Pool(specs, new, lambda kept, given: kept.copy_(torch.from_numpy(given)))


def fetched(tensor: Tensor | Array) -> Array:
    """A state tensor as an array of this process."""
    return tensor if isinstance(tensor, np.ndarray) else tensor.cpu().numpy()


class Recorded:
    """A program `module(tokens, *state) -> (logits, *state)` of a fixed number of tokens, all of it on one device."""

    def __init__(self, module: Any, tokens: int, slots: Pool, device: str) -> None:
        self._module, self._slots = module, slots
        self._tokens = torch.zeros(tokens, dtype=torch.int64, device=device)
        self._seen: set[Pair] = set()
        self._graphs: dict[Pair, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def __call__(self, tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        """One call; the state is arrays, or what a call gave."""
        before, after = self._slots.own(state), self._slots.take()
        self._tokens.copy_(torch.from_numpy(tokens))
        pair = (id(before[0]), id(after[0]))
        if pair in self._seen and pair not in self._graphs and len(self._graphs) < MOST_RECORDED:
            self._graphs[pair] = self._record(before, after)
        self._seen.add(pair)
        if pair in self._graphs:
            graph, logits = self._graphs[pair]
            graph.replay()
        else:
            logits = self._run(before, after)
        return logits.cpu().numpy(), after

    @torch.no_grad()
    def _run(self, before: Slot, after: Slot) -> Tensor:
        logits, *new = self._module(self._tokens, *before)
        torch._foreach_copy_(list(after), new)
        return cast(Tensor, logits)

    def _record(self, before: Slot, after: Slot) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._run(before, after)
        return graph, logits
