"""Names and shapes of a graph's inputs and outputs: our own, and those that others load; renames, no maths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from exporter.contract import ModelSpec
from runtimes.contract import TensorSpec
from runtimes.errors import WrongCall
from runtimes.manifest import StateTensor


@dataclass(frozen=True)
class Ports:
    """What a graph's inputs and outputs are called; `state` is in graph order.

    leading: axes of size 1 before the one of tokens
    ids:     type of the token ids
    """

    tokens: str
    logits: str
    state: tuple[StateTensor, ...]
    leading: int = 0
    ids: torch.dtype = torch.int64

    def arguments(self, tokens: int) -> tuple[Tensor, ...]:
        """Example inputs: `tokens` zeros and the initial state."""
        state = (torch.full(tensor.shape, tensor.fill) for tensor in self.state)
        return (torch.zeros((*[1] * self.leading, tokens), dtype=self.ids), *state)

    def inputs(self) -> list[str]:
        """Input names in graph order."""
        return [self.tokens, *(tensor.input for tensor in self.state)]

    def outputs(self) -> list[str]:
        """Output names in graph order."""
        return [self.logits, *(tensor.output for tensor in self.state)]


def own(spec: ModelSpec, *, dtype: str = "float32", rename: Callable[[str], str] = str) -> Ports:
    """`tokens`, `logits`, `blocks.0.att.wkv` in and `blocks.0.att.wkv.next` out, through `rename`."""
    state = []
    for tensor in spec.state:
        stored = tensor.stored_as(dtype)
        state.append(_stated(stored, rename(tensor.name), rename(f"{tensor.name}.next")))
    return Ports("tokens", "logits", tuple(state))


def rwkv_mobile(spec: ModelSpec) -> Ports:
    """`in`, `state{i}_in`, `out`, `state{i}_out` with vectors as (1, 1, C); raises WrongCall for v4."""
    if any(len(tensor.shape) == 2 and not tensor.name.endswith(".shift") for tensor in spec.state):
        raise WrongCall(
            f"rwkv-mobile names need three state tensors a layer, RWKV-{spec.version} has others",
            hint="use the default names",
        )
    state = []
    for i, tensor in enumerate(spec.state):
        shape, axes = tensor.shape, tensor.axes
        if len(shape) == 2:
            shape, axes = (1, *shape), ("batch", "time", "channel")
        widened = TensorSpec(tensor.name, shape, tensor.dtype, axes, tensor.fill)
        state.append(_stated(widened, f"state{i}_in", f"state{i}_out"))
    return Ports("in", "out", tuple(state), leading=1, ids=torch.int32)


def stacked(
    spec: ModelSpec, *, dtype: str = "float32", rename: Callable[[str], str] = str, part: range | None = None
) -> Ports:
    """As `own`, with one tensor `blocks.*.att.wkv` (layers, ...), port `att.wkv`, for the tensors of all layers.

    part: only these layers, as `blocks.8+*.att.wkv`, port `att.wkv.8`
    """
    layers, scope, tail = (spec.layers, "*", "") if part is None else (len(part), f"{part.start}+*", f".{part.start}")
    state = []
    for first in spec.state[: len(spec.state) // spec.layers]:
        name = first.name.replace("blocks.0.", f"blocks.{scope}.")
        shape, axes = (layers, *first.shape[1:]), ("layer", *first.axes[1:])
        together = replace(first, name=name, shape=shape, axes=axes).stored_as(dtype)
        port = first.name.removeprefix("blocks.0.") + tail
        state.append(_stated(together, rename(port), rename(f"{port}.next")))
    return Ports("tokens", "logits", tuple(state))


def _stated(tensor: TensorSpec, into: str, out: str) -> StateTensor:
    return StateTensor(tensor.name, tensor.shape, tensor.dtype, tensor.axes, tensor.fill, into, out, tensor.scale)


class Stacked(nn.Module):
    """A step module whose state tensors of all layers come as one tensor of each kind."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.model = model
        self.layers = spec.layers

    def forward(self, tokens: Tensor, *stacks: Tensor) -> tuple[Tensor, ...]:
        """tokens (T,), stacks (layers, ...) -> (logits (1, V), *stacks)."""
        state = [stack[layer : layer + 1] for layer in range(self.layers) for stack in stacks]
        logits, *new = self.model(tokens, *state)
        return (logits, *(torch.cat(new[kind :: len(stacks)]) for kind in range(len(stacks))))


class Widened(nn.Module):
    """A step module whose state tensors and logits have rwkv-mobile's shapes: tokens (1, T), logits (1, 1, V)."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.model = model
        self.shapes = [tensor.shape for tensor in spec.state]

    def forward(self, tokens: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """tokens (1, T), state -> (logits (1, 1, V), *state)."""
        narrow = [tensor.reshape(shape) for tensor, shape in zip(state, self.shapes, strict=True)]
        logits, *new = self.model(tokens.reshape(-1), *narrow)
        wide = [tensor.reshape(given.shape) for tensor, given in zip(new, state, strict=True)]
        return (logits.reshape(1, 1, -1), *wide)
