"""Parameters whose shape is known now and value later: graphs are traced without the weights in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from exporter.checkpoint import check_finite
from exporter.contract import Weights

Recipe = Callable[[], Tensor]

ROWS = 4096  # rows of a table in memory as float32 at once


def same(tensor: Tensor) -> Tensor:
    """The tensor as it is stored."""
    return tensor


class Take:
    """Hands out a scope's parameters: `take("w0", fn=flat)` for `blocks.3.att.w0` when scoped there.

    A parameter is created on the meta device with the shape `fn` gives; its recipe reads the checkpoint when asked.
    """

    def __init__(self, weights: Weights, scope: str = "") -> None:
        self._weights = weights
        self.scope = scope

    def at(self, part: str) -> Take:
        """The scope one level below."""
        return Take(self._weights, f"{self.scope}{part}.")

    def has(self, name: str) -> bool:
        """Whether the checkpoint has `name` in this scope."""
        return self.scope + name in self._weights

    def __call__(self, *names: str, fn: Callable[..., Tensor] = same) -> nn.Parameter:
        """A float32 parameter computed by `fn` from the named tensors."""
        full = [self.scope + name for name in names]
        metas = [torch.empty(self._weights[name].shape, device="meta") for name in full]
        return parameter(fn(*metas), lambda: fn(*(self._read(name) for name in full)))

    def by_rows(self, rows: Sequence[str], *others: str, fn: Callable[..., Tensor]) -> nn.Parameter:
        """As a call, `fn` seeing a block of rows of the tensors `rows` at a time: no float32 copy of a whole table."""
        tables, rest = [self.scope + name for name in rows], [self.scope + name for name in others]
        metas = [torch.empty(self._weights[name].shape, device="meta") for name in (*tables, *rest)]
        shape = fn(*metas).shape

        def recipe() -> Tensor:
            made, fixed = torch.empty(shape), [self._read(name) for name in rest]
            for start in range(0, shape[0], ROWS):
                part = slice(start, start + ROWS)
                made[part] = fn(*(self._read(name, part) for name in tables), *fixed)
            return made

        return parameter(torch.empty(shape, device="meta"), recipe)

    def optional(self, name: str, fn: Callable[..., Tensor] = same) -> nn.Parameter | None:
        """As a call, or None where the checkpoint lacks the tensor."""
        return self(name, fn=fn) if self.has(name) else None

    def _read(self, name: str, rows: slice = slice(None)) -> Tensor:
        tensor = self._weights[name][rows].to(torch.float32, copy=True)  # a view would keep the file in memory
        check_finite(name, tensor)
        return tensor


def parameter(meta: Tensor, recipe: Recipe) -> nn.Parameter:
    """A meta parameter of `meta`'s shape with `recipe` attached."""
    made = nn.Parameter(meta.to("meta"), requires_grad=False)
    made.recipe = recipe  # type: ignore[attr-defined]
    return made


def constant(tensor: Tensor) -> nn.Parameter:
    """A parameter whose value is known already, e.g. a row of ones."""
    return parameter(tensor, lambda: tensor)


def value(made: nn.Parameter) -> Tensor:
    """The value of one parameter, of its type and contiguous, read from the checkpoint now."""
    recipe = cast(Recipe, made.recipe)  # type: ignore[attr-defined]
    return recipe().to(made.dtype).contiguous()


def materialise(module: nn.Module) -> Iterator[str]:
    """Give every parameter its value, yielding each name as it is done; the module is usable afterwards."""
    for prefix, part in list(module.named_modules()):
        for name, made in list(part.named_parameters(recurse=False)):
            part.register_parameter(name, nn.Parameter(value(made), requires_grad=False))
            yield f"{prefix}.{name}" if prefix else name
