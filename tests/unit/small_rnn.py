"""A recurrent model of a few numbers in numpy as a session, for tests to plant faults in; it is no RWKV."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from runtimes.contract import Array, Placement, TensorSpec
from runtimes.session import ExplicitSession, Tensors

VOCAB, WIDTH, HEADS, SIZE = 31, 6, 2, 3
PLACE = "fake:cpu"

Fault = Callable[[int, Array, Tensors], tuple[Array, Tensors]]
"""(calls so far, logits, new state) -> what the broken session returns instead."""


def specs(dtype: str) -> list[TensorSpec]:
    """A shift, a matrix per head, and a running maximum as in v4."""
    tensors = [
        TensorSpec("blocks.0.att.shift", (1, WIDTH), "float64", ("batch", "channel")),
        TensorSpec("blocks.0.att.wkv", (1, HEADS, SIZE, SIZE), "float64", ("batch", "head", "value", "key")),
        TensorSpec("blocks.0.att.pp", (1, WIDTH), "float64", ("batch", "channel"), -1e30),
    ]
    return [tensor.stored_as(dtype) for tensor in tensors]


class Model:
    """The maths in one float type; `__call__` is a graph of any length."""

    def __init__(self, dtype: str = "float32") -> None:
        chance = np.random.default_rng(7)
        self.dtype = dtype
        self.emb, self.r, self.k, self.v = (
            chance.normal(size=shape).astype(dtype) for shape in [(VOCAB, WIDTH)] + 3 * [(WIDTH, WIDTH)]
        )
        self.head = chance.normal(size=(VOCAB, 2 * WIDTH)).astype(dtype)

    def __call__(self, tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        shift, wkv, pp = (tensor[0] for tensor in state)
        for token in tokens:
            x = self.emb[token]
            mixed = (x + shift) / 2
            r, k, v = (np.tanh(matrix @ mixed).reshape(HEADS, SIZE) for matrix in (self.r, self.k, self.v))
            wkv = wkv * np.asarray(0.9, self.dtype) + v[:, :, None] * k[:, None, :]
            top = np.maximum(pp - np.asarray(0.1, self.dtype), x)
            y = np.concatenate([np.einsum("hvk,hk->hv", wkv, r).reshape(-1), np.exp(pp - top)])
            shift, pp = x, top
        return (self.head @ y).astype(np.float32), (shift[None], wkv[None], pp[None])


def session(
    dtype: str = "float32",
    *,
    fault: Fault | None = None,
    sizes: Sequence[int] = (1, 4),
    observed: str = PLACE,
    tensors: Sequence[TensorSpec] | None = None,
) -> ExplicitSession:
    """The model as a session; `fault` changes what every call returns."""
    model, calls = Model(dtype), 0

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        nonlocal calls
        logits, new = model(tokens, state)
        if fault:
            logits, new = fault(calls, logits, new)
        calls += 1
        return logits, new

    placed = Placement(PLACE, observed, {"nodes": 9})
    return ExplicitSession(tensors or specs(dtype), {}, VOCAB, dict.fromkeys(sizes, run), lambda: placed)
