"""The frame all versions share (embedding, residual blocks, head) and the token shift; no version's own maths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporter.contract import ModelSpec, Spelling, Weights
from exporter.models.blocks import BlockRecurrence
from exporter.models.parameters import Take
from exporter.models.primitives import HeadNorm, LayerNorm, last, previous
from runtimes.contract import TensorSpec

LN_EPS = 1e-5  # torch's default, used by every official layer norm but ln_x


def flat(tensor: Tensor) -> Tensor:
    """[1, 1, C] -> [C]."""
    return tensor.reshape(-1)


def complement(tensor: Tensor) -> Tensor:
    """v4 and v5 mix x*m + prev*(1-m); as x + (prev-x)*mu that is mu = 1-m."""
    return 1.0 - tensor.reshape(-1)


def norm(take: Take, spelling: Spelling) -> LayerNorm:
    """The layer norm of a scope."""
    return LayerNorm(take("weight"), take("bias"), LN_EPS, spelling)


def head_norm(take: Take, spec: ModelSpec, spelling: Spelling) -> HeadNorm:
    """The "ln_x" of a time mix's scope."""
    at = take.at("ln_x")
    return HeadNorm(at("weight"), at("bias"), spec.heads, spec.ln_x_eps, spelling)


def embedded(table: Tensor, *ln0: Tensor) -> Tensor:
    """The embedding table with ln0 applied to every row, (V, C): ln0 sees nothing but the token."""
    return F.layer_norm(table, table.shape[-1:], ln0[0], ln0[1], LN_EPS) if ln0 else table


def embedding(take: Take) -> nn.Parameter:
    """The (V, C) table whose rows enter block 0."""
    ln0 = ["blocks.0.ln0.weight", "blocks.0.ln0.bias"] if take.has("blocks.0.ln0.weight") else []
    return take.by_rows(["emb.weight"], *ln0, fn=embedded)


class Linear(nn.Module):
    """x @ weight.T (+ bias), weight (out, in)."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        return F.linear(x, self.weight, self.bias)


def project(take: Take, name: str) -> Linear:
    """The linear `name` of a scope, with its bias where the checkpoint has one."""
    at = take.at(name)
    return Linear(at("weight"), at.optional("bias"))


def transposed(tensor: Tensor) -> Tensor:
    """LoRA factors are stored for x @ w; a linear wants (out, in)."""
    return tensor.reshape(tensor.shape[-2:]).t()


class TokenShift(nn.Module):
    """x + (x of the previous token - x) * mu; the state keeps x, which is the output of the layer norm."""

    def __init__(self, **mu: nn.Parameter) -> None:
        super().__init__()
        self.mu = nn.ParameterDict(list(mu.items()))  # from a dict it would sort its keys

    def forward(self, x: Tensor, shift: Tensor) -> list[Tensor]:
        """x (T, C), shift (1, C) -> one mixed input (T, C) for each mu, in order."""
        delta = previous(x, shift) - x
        return [x + delta * mu for mu in self.mu.values()]


class GatedChannelMix(nn.Module):
    """sigmoid(R @ xr) * V @ relu(K @ xk)^2, the feed-forward of v4, v5 and v6; mixing differs, so it is passed in."""

    def __init__(self, take: Take, shift: TokenShift) -> None:
        super().__init__()
        self.shift = shift
        self.key, self.value, self.receptance = (project(take, name) for name in ("key", "value", "receptance"))

    def forward(self, tokens: Tensor, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """x (T, C), shift (1, C) -> what is added to the residual (T, C), the new shift (1, C)."""
        xk, xr = self.shift(x, shift)
        k = torch.relu(self.key(xk))
        return torch.sigmoid(self.receptance(xr)) * self.value(k * k), last(x)


class Block(nn.Module):
    """ln1, time mix, ln2, channel mix, both residual.

    time_mix:    (x, first, *state) -> (added, first, *state); `first` is what layer 0 hands to later layers within
                 the same tokens (v7's v_first), None at layer 0 and in versions without it
    channel_mix: (tokens, x, shift) -> (added, shift)
    """

    def __init__(self, take: Take, spelling: Spelling, time_mix: nn.Module, channel_mix: nn.Module) -> None:
        super().__init__()
        self.ln1, self.ln2 = norm(take.at("ln1"), spelling), norm(take.at("ln2"), spelling)
        self.att, self.ffn = time_mix, channel_mix

    def forward(
        self, tokens: Tensor, x: Tensor, first: Tensor | None, *state: Tensor
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """tokens (T,), x (T, C), this block's state tensors -> x, first, the new state tensors."""
        added, first, *new = self.att(self.ln1(x), first, *state[:-1])
        x = x + added
        added, shift = self.ffn(tokens, self.ln2(x), state[-1])
        return x + added, first, [*new, shift]


class StepModel(nn.Module):
    """The whole step: pure in (tokens, *state), the same module for T = 1 and T = n.

    tokens (T,) integer; state tensors in the order of ModelSpec.state; returns the last token's logits (1, V) and
    the new state tensors in the same order. A matrix may come as two, as in pairs.py, and then leaves as two.
    """

    def __init__(self, take: Take, spelling: Spelling, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.emb = embedding(take)
        self.blocks = nn.ModuleList(blocks)
        self.ln_out = norm(take.at("ln_out"), spelling)
        self.head = project(take, "head")

    def forward(self, tokens: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """tokens (T,), state -> (logits (1, V), *state)."""
        x, first, new = F.embedding(tokens, self.emb), None, []
        per_block = len(state) // len(self.blocks)
        for i, block in enumerate(self.blocks):
            old = state[i * per_block : (i + 1) * per_block]
            x, first, own = block(tokens, x, first, *old)
            new += own
        return (self.head(self.ln_out(last(x))), *new)


def step_model(
    spec: ModelSpec,
    weights: Weights,
    spelling: Spelling,
    mixes: Callable[[Take, int], tuple[nn.Module, nn.Module]],
) -> StepModel:
    """The module of `spec`; `mixes` makes block i's time mix and channel mix from its scope."""
    take = Take(weights)
    scopes = [take.at("blocks").at(str(i)) for i in range(spec.layers)]
    blocks = [Block(scope, spelling, *mixes(scope, i)) for i, scope in enumerate(scopes)]
    return StepModel(take, spelling, blocks)


def check_step(spec: ModelSpec, model: nn.Module) -> None:
    """Raise TypeError where a version's step and spec are at odds; nothing is computed."""
    _check_names(spec, model)
    _check_call(spec, model)


def _check_names(spec: ModelSpec, model: nn.Module) -> None:
    """Every block has the same state tensors and one recurrence, which targets look for by these names."""
    kinds = [tensor.name.removeprefix("blocks.0.") for tensor in spec.state[: len(spec.state) // spec.layers]]
    wanted = [f"blocks.{i}.{kind}" for i in range(spec.layers) for kind in kinds]
    for tensor, name in zip_longest(spec.state, wanted):
        if tensor is None or tensor.name != name or len(tensor.axes) != len(tensor.shape) or not isfinite(tensor.fill):
            raise TypeError(f"name, axes or fill of a state tensor are wrong, expected {name}: {tensor}")
    found = [name for name, part in model.named_modules() if isinstance(part, BlockRecurrence)]
    if found != (wanted := [f"blocks.{i}.att.recurrence" for i in range(spec.layers)]):
        raise TypeError(f"a time mix holds one BlockRecurrence: expected {wanted}, found {found}")


def _check_call(spec: ModelSpec, model: nn.Module) -> None:
    """One token, on shapes alone: the step takes the state tensors of the spec, and returns such."""
    state = [torch.empty(tensor.shape, device="meta") for tensor in spec.state]
    try:
        _, *new = model(torch.empty(1, dtype=torch.int64, device="meta"), *state)
    except (TypeError, ValueError, RuntimeError) as error:
        given = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in spec.state[: len(state) // spec.layers])
        raise TypeError(f"the step does not take the state that the spec declares, {given}: {error}") from error
    for tensor, made in zip_longest(spec.state, new):
        if tensor is None or made is None or made.shape != tensor.shape:
            shape = None if made is None else tuple(made.shape)
            raise TypeError(f"the step returns a state tensor of shape {shape} where the spec declares {tensor}")


def shift_state(i: int, part: str, width: int) -> TensorSpec:
    """The last normalised input of block i's "att" or "ffn"."""
    return TensorSpec(f"blocks.{i}.{part}.shift", (1, width), "float32", ("batch", "channel"))


def matrix_states(layers: int, width: int, heads: int, axes: tuple[str, str]) -> tuple[TensorSpec, ...]:
    """Shift, matrix, shift of every block; `axes` are the matrix's last two, v7's the other way round than v5's."""
    size = width // heads
    state: list[TensorSpec] = []
    for i in range(layers):
        wkv = TensorSpec(f"blocks.{i}.att.wkv", (1, heads, size, size), "float32", ("batch", "head", *axes))
        state += [shift_state(i, "att", width), wkv, shift_state(i, "ffn", width)]
    return tuple(state)
