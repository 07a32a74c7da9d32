"""How the Neural Engine's form of a step keeps its tensors: channels second, tokens last, rank 4; it computes nothing.

A value of a traced step has a logical shape, which the step's own operations see, and one of these layouts:

    plain     as it is
    channels  (T, C) as (1, C, 1, T) and (B, T, C) as (B, C, 1, T): what a 1x1 convolution takes
    heads     (T, H, N) as (1, H, T, N): the last axis is a whole head
    blocks    (blocks, size, H, N) as (blocks, H, size, N): so that a block is one batch of products
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Layout = Literal["plain", "channels", "heads", "blocks"]

ORDER: dict[tuple[Layout, int], tuple[int, ...]] = {  # the logical axis that lies where; None is an axis of size 1
    ("channels", 2): (-1, 1, -1, 0),
    ("channels", 3): (0, 2, -1, 1),
    ("heads", 3): (-1, 1, 0, 2),
    ("blocks", 4): (0, 2, 1, 3),
}


@dataclass(frozen=True)
class Laid:
    """A tensor as it lies, with the layout and the rank that say what it stands for."""

    tensor: Tensor
    layout: Layout
    rank: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape."""
        return tuple(self.tensor.shape[self.axis(axis)] for axis in range(self.rank))

    def axis(self, logical: int) -> int:
        """Where a logical axis lies."""
        logical %= self.rank
        return logical if self.layout == "plain" else ORDER[self.layout, self.rank].index(logical)


def plain(tensor: Tensor) -> Laid:
    """A tensor that lies as it is."""
    return Laid(tensor, "plain", tensor.dim())


def lay(value: Laid, layout: Layout, rank: int | None = None) -> Laid:
    """The same value in another layout; axes of size 1 are put in front until it has `rank`."""
    rank = rank or value.rank
    if (value.layout, value.rank) == (layout, rank):
        return value
    if value.layout == layout == "channels" and (value.rank, rank) == (2, 3):
        return Laid(value.tensor, "channels", 3)
    tensor = unlaid(value)
    tensor = tensor.reshape(*[1] * (rank - tensor.dim()), *tensor.shape)
    if layout == "plain":
        return plain(tensor)
    order = ORDER[layout, rank]
    return Laid(moved(tensor, [axis for axis in order if axis >= 0], _sizes(tensor, order)), layout, rank)


def unlaid(value: Laid) -> Tensor:
    """The tensor in its logical shape."""
    if value.layout == "plain":
        return value.tensor
    order = ORDER[value.layout, value.rank]
    kept = [axis for axis in order if axis >= 0]
    tensor = value.tensor.reshape([value.tensor.shape[at] for at, axis in enumerate(order) if axis >= 0])
    return moved(tensor, [kept.index(axis) for axis in range(value.rank)], value.shape)


def moved(tensor: Tensor, order: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The tensor's axes in `order`, in `shape`: a reshape alone where no number moves."""
    wide = [axis for axis in order if tensor.shape[axis] > 1]
    if wide != sorted(wide):
        tensor = tensor.permute(*order)
    return tensor if tensor.shape == tuple(shape) else tensor.reshape(*shape)


def _sizes(tensor: Tensor, order: Sequence[int]) -> list[int]:
    return [tensor.shape[axis] if axis >= 0 else 1 for axis in order]


def reshaped(value: Laid, shape: Sequence[int]) -> Laid:
    """The value in another logical shape, moved only where no layout says the same."""
    shape = _known(shape, math.prod(value.shape))
    if value.layout == "plain" and value.rank == 4 and len(shape) == 3 and shape[0] == 1:
        return Laid(value.tensor.reshape(1, shape[1], 1, shape[2]), "heads", 3)
    way = _way(value, shape)
    if way is None:
        return plain(unlaid(value).reshape(*shape))
    split, order, into, layout = way
    return Laid(moved(value.tensor.reshape(*split), order, into), layout, len(shape))


def _way(value: Laid, shape: Sequence[int]) -> tuple[Sequence[int], Sequence[int], Sequence[int], Layout] | None:
    """From one layout to another: in which shape to see the tensor, the order of its axes, their shape, the layout."""
    given = value.shape
    match value.layout, len(given), len(shape):
        case "channels", 2, 3 if shape[0] == given[0]:
            tokens, heads, size = shape
            return (1, heads, size, tokens), (0, 1, 3, 2), (1, heads, tokens, size), "heads"
        case "heads", 3, 2 if shape[0] == given[0]:
            return value.tensor.shape, (0, 1, 3, 2), (1, shape[1], 1, shape[0]), "channels"
        case "heads", 3, 4 if shape[2:] == given[1:]:
            blocks, tokens, heads, size = shape
            return (heads, blocks, tokens, size), (1, 0, 2, 3), (blocks, heads, tokens, size), "blocks"
        case "blocks", 4, 3 if shape[1:] == given[2:]:
            return value.tensor.shape, (1, 0, 2, 3), (1, shape[1], shape[0], shape[2]), "heads"
        case "heads", 3, rank if given[0] == 1:  # nothing has moved within one token
            return shape, range(rank), shape, "plain"
    return None


def _known(shape: Sequence[int], numbers: int) -> tuple[int, ...]:
    """The shape with its -1 replaced."""
    known = math.prod(size for size in shape if size != -1)
    return tuple(numbers // known if size == -1 else size for size in shape)
