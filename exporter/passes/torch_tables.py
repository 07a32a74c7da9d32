"""Stores tables that a step module only looks rows up in as 8 bits, with operators that every runtime has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from exporter.contract import ModelSpec
from exporter.graph import arguments

GROUP = 32  # values of a row that share a scale, where they divide it; else the whole row does
LARGEST = 127
ROWS = 4096  # rows rounded at once


class Table(nn.Module):
    """Stands where a parameter (V, C) stood: a module that torch asks what F.embedding shall do with it.

    Gathers the 8-bit row and its scales, then multiplies. ExecuTorch's own operator for this is in a library of
    kernels that runtimes are often built without.

    values: (V, C) int8
    scales: (V, groups of a row) float16, what a step of a group's values is worth
    """

    values: Tensor
    scales: Tensor

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """F.embedding(tokens (T,), table) -> (T, C) float32; nothing else takes a table."""
        return args[1](args[0]) if function is F.embedding else NotImplemented

    def forward(self, tokens: Tensor) -> Tensor:
        """(T,) -> (T, C) float32."""
        values, scales = (F.embedding(tokens, part).to(torch.float32) for part in (self.values, self.scales))
        rows, groups = scales.shape
        return (values.reshape(rows, groups, -1) * scales.reshape(rows, groups, 1)).reshape(values.shape)


def rounded(table: Tensor) -> Table:
    """A (V, C) float32 table to nearest, the largest magnitude of a group becoming 127."""
    rows, width = table.shape
    groups = width // GROUP if width % GROUP == 0 else 1
    made = Table(torch.empty(rows, width, dtype=torch.int8), torch.empty(rows, groups, dtype=torch.float16))
    for start in range(0, rows, ROWS):
        some = slice(start, start + ROWS)
        values = table[some].reshape(-1, groups, width // groups)
        made.scales[some] = values.abs().amax(-1) / LARGEST
        steps = made.scales[some].to(torch.float32)
        steps[steps == 0] = 1  # values of a group of zeros are zeros at any scale
        steps = (values / steps.unsqueeze(-1)).round().clamp(-LARGEST, LARGEST)
        made.values[some] = steps.reshape(-1, width)
    return made


def looked_up(model: nn.Module, spec: ModelSpec) -> set[nn.Parameter]:
    """The parameters of a step module, on the meta device, that F.embedding reads."""
    seen: set[nn.Parameter] = set()

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, function: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            if function is F.embedding:
                seen.add(args[1])
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        model(*(tensor.to("meta") for tensor in arguments(spec, 1)))
    return seen
