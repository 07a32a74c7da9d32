"""The operations of a traced step on tensors laid out for the Neural Engine; what has no entry is computed plainly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from exporter.passes.ane_layout import Laid, Layout, lay, plain, reshaped
from exporter.passes.ane_norm import channel_norm

aten = torch.ops.aten

Handler = Callable[..., Laid | None]

ELEMENTWISE = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.maximum.default,
    aten.exp.default,
    aten.neg.default,
    aten.tanh.default,
    aten.sigmoid.default,
    aten.relu.default,
    aten.rsqrt.default,
    aten.clamp.default,
    aten.ones_like.default,
}


def elementwise(target: Any, *args: Any, **kwargs: Any) -> Laid:
    """In the layout that one of the operands has, channels before heads."""
    given = [arg for arg in args if isinstance(arg, Laid)]
    layout, rank = common(given)
    tensors = [lay(arg, layout, rank).tensor if isinstance(arg, Laid) else arg for arg in args]
    return Laid(target(*tensors, **kwargs), layout, rank)


def common(given: Sequence[Laid]) -> tuple[Layout, int]:
    """A layout in which tensors can meet, and their rank there."""
    rank = max(value.rank for value in given)
    layouts = {value.layout for value in given} - {"plain"}
    found: Layout = layouts.pop() if len(layouts) == 1 else "plain"
    fits = {"channels": rank <= 3, "heads": rank == 3, "blocks": rank == 4, "plain": True}[found]
    return (found, rank) if fits else ("plain", rank)


def linear(x: Laid, weight: Laid, bias: Laid | None = None) -> Laid:
    """A 1x1 convolution: weight (out, in, 1, 1)."""
    made = F.conv2d(lay(x, "channels").tensor, weight.tensor, None if bias is None else bias.tensor)
    return Laid(made, "channels", 2)


def layer_norm(
    x: Laid, shape: Sequence[int], weight: Laid | None = None, bias: Laid | None = None, eps: float = 1e-5, *_: Any
) -> Laid | None:
    """Over the channels, or over a head, which lies last."""
    if x.layout == "heads":
        gamma, beta = (None if value is None else value.tensor for value in (weight, bias))
        return Laid(F.layer_norm(x.tensor, list(shape), gamma, beta, eps), "heads", 3)
    if x.rank == 2 and weight is not None and bias is not None:
        x = lay(x, "channels")
        return Laid(channel_norm(x.tensor, weight.tensor, bias.tensor, eps), "channels", 2)
    return None


def silu(x: Laid) -> Laid:
    """x sigmoid(x)."""
    return Laid(x.tensor * torch.sigmoid(x.tensor), x.layout, x.rank)


def slice_(x: Laid, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Laid:
    """Of a logical axis."""
    return Laid(aten.slice.Tensor(x.tensor, x.axis(axis), start, end, step), x.layout, x.rank)


def select(x: Laid, axis: int, index: int) -> Laid | None:
    """One of several stacked tensors of channels."""
    if (x.layout, x.rank, axis) != ("channels", 3, 0):
        return None
    return Laid(x.tensor[index : index + 1], "channels", 2)


def cat(parts: Sequence[Laid], axis: int = 0) -> Laid:
    """Along a logical axis."""
    layout, rank = common(parts)
    laid = [lay(part, layout, rank) for part in parts]
    return Laid(torch.cat([part.tensor for part in laid], laid[0].axis(axis)), layout, rank)


def stack(parts: Sequence[Laid], axis: int = 0) -> Laid | None:
    """Tensors of channels as one with a leading axis."""
    if axis != 0 or any((part.layout, part.rank) != ("channels", 2) for part in parts):
        return None
    return Laid(torch.cat([part.tensor for part in parts]), "channels", 3)


def sum_(x: Laid, axes: Sequence[int], keepdim: bool = False) -> Laid | None:
    """Over logical axes that stay."""
    if not keepdim:
        return None
    return Laid(x.tensor.sum([x.axis(axis) for axis in axes], keepdim=True), x.layout, x.rank)


def transpose(x: Laid, one: int, other: int) -> Laid | None:
    """A block's heads and tokens change places without moving."""
    if x.rank == 4 and {one, other} == {1, 2}:
        if x.layout == "blocks":
            return plain(x.tensor)
        if x.layout == "plain":
            return Laid(x.tensor, "blocks", 4)
    return None


HANDLERS: dict[Any, Handler] = {
    aten.linear.default: linear,
    aten.layer_norm.default: layer_norm,
    aten.silu.default: silu,
    aten.slice.Tensor: slice_,
    aten.select.int: select,
    aten.cat.default: cat,
    aten.stack.default: stack,
    aten.sum.dim_IntList: sum_,
    aten.transpose.int: transpose,
    aten.reshape.default: reshaped,
}
