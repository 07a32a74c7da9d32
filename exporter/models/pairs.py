"""Matrix states in two tensors, which in float16 keep the small additions that one would lose; of no version.

The state is the high part plus the low part over SCALE. Both are of the state's own shape. The rounding error of a sum
is computed as Knuth does (The Art of Computer Programming, volume 2, section 4.2.2, theorem B).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from exporter.models.primitives import stack
from runtimes.pairing import SCALE

Linear = Callable[[Tensor], Tensor]


def gone(log_w: Tensor) -> Tensor:
    """1 - e^log_w where log_w <= 0, as 2 t / (1 + t) with t = tanh(-log_w / 2), in which nothing cancels."""
    half = torch.tanh(log_w * -0.5)
    return 2.0 * half / (1.0 + half)


def read(state: Sequence[Tensor], by: Linear) -> Tensor:
    """What `by`, which is linear, gives of the state."""
    high, low = state
    return by(high) + by(low) * (1 / SCALE)


def changed(state: Sequence[Tensor], change: Linear, added: Tensor) -> tuple[Tensor, Tensor]:
    """S + change(S) + added, where `change` is linear and of the shape of S.

    What the sum in the high part rounds away goes to the low part, and what has grown up there to the high part.
    """
    high, low = state
    addend = change(high) + added
    total = high + addend
    seen = total - high
    lost = (high - (total - seen)) + (addend - seen)
    low = low + (change(low) + lost * SCALE)
    carried = total + low * (1 / SCALE)
    return carried, low - (carried - total) * SCALE


def chain(
    state: Sequence[Tensor], change: Callable[[int, Tensor], Tensor], added: Callable[[int], Tensor], blocks: int
) -> tuple[list[Tensor], Sequence[Tensor]]:
    """As `blocks.chain`: the state (1, ...) as every block finds it (blocks, ...), and as the last leaves it."""
    entering = []
    for block in range(blocks):
        entering.append(state)
        state = changed(state, partial(change, block), added(block))
    return [stack(list(part)) for part in zip(*entering, strict=True)], state
