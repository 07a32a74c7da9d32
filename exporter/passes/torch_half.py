"""A step module in 16-bit arithmetic, whose recurrences stay in float32; it traces nothing and reads no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from exporter.models.blocks import BlockRecurrence
from exporter.models.parameters import parameter, value
from exporter.models.primitives import L2Normalise
from exporter.ports import Ports
from runtimes.manifest import Kept

KEPT = Kept(
    "recurrences, their states, and the norm of keys",
    "float32",
    "a decay near 1 rounds to 1 in 16 bits, and a state forgets what is added to it",
)


class Typed(Ports):
    """Ports whose example inputs have the types of the state."""

    def arguments(self, tokens: int) -> tuple[Tensor, ...]:
        """Example inputs: `tokens` zeros and the initial state."""
        ids, *state = super().arguments(tokens)
        types = (getattr(torch, tensor.dtype) for tensor in self.state)
        return (ids, *(tensor.to(dtype) for tensor, dtype in zip(state, types, strict=True)))


def halve(model: nn.Module, named: Ports, dtype: torch.dtype) -> Ports:
    """Let a step module compute in `dtype`, in place; its ports, where the shifts of tokens are float16 if all else is.

    Its parameters are of that type, its logits float32. Recurrences take and keep float32, and give `dtype` besides
    their state, which is float32 too. So does the norm of keys, whose squares overflow.
    """
    wide = [part for part in model.modules() if isinstance(part, BlockRecurrence | L2Normalise)]
    stay = {id(made) for part in wide for made in part.parameters()}
    for part in list(model.modules()):
        for name, made in list(part.named_parameters(recurse=False)):
            if id(made) not in stay:
                part.register_parameter(name, parameter(made.to(dtype), partial(value, made)))
    for part in wide:
        part.register_forward_pre_hook(lambda _, given: tuple(tensor.float() for tensor in given))
        if isinstance(part, BlockRecurrence):
            part.register_forward_hook(lambda _, given, made: (made[0].to(dtype), *made[1:]))
    shifts = [tensor.name.endswith(".shift") for tensor in named.state]
    model.register_forward_pre_hook(partial(_narrow, shifts, dtype))
    stored = [
        replace(tensor, dtype="float16") if shift and dtype == torch.float16 else tensor
        for tensor, shift in zip(named.state, shifts, strict=True)
    ]
    model.register_forward_hook(
        partial(_as_stored, [torch.float32, *(getattr(torch, tensor.dtype) for tensor in stored)])
    )
    return Typed(**vars(replace(named, state=tuple(stored))))


def _narrow(shifts: Sequence[bool], dtype: torch.dtype, _: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    tokens, *state = given
    return tokens, *(tensor.to(dtype) if shift else tensor for tensor, shift in zip(state, shifts, strict=True))


def _as_stored(types: Sequence[torch.dtype], _: nn.Module, given: Any, made: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.to(dtype) for tensor, dtype in zip(made, types, strict=True))
