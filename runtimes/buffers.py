"""State tensors that are used again once nobody holds them, so that stepping allocates none, here or on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from runtimes.contract import Array, TensorSpec


class Slot(tuple[Any, ...]):
    """The tensors of one state; they go back to their pool when the last reference to the slot is gone."""

    pool: Pool

    def __del__(self) -> None:
        self.pool.free.append(tuple(self))


def _empty(spec: TensorSpec) -> Array:
    return np.empty(spec.shape, spec.dtype)


class Pool:
    """Hands out slots of uninitialised tensors. A decode loop, which drops each state after its step, uses two.

    new:  makes a tensor where the states are
    copy: writes an array of this process into such a tensor
    """

    def __init__(
        self,
        specs: Sequence[TensorSpec],
        new: Callable[[TensorSpec], Any] = _empty,
        copy: Callable[[Any, Array], None] = np.copyto,
    ) -> None:
        self.specs = tuple(specs)
        self.free: list[tuple[Any, ...]] = []
        self._new, self._copy = new, copy

    def take(self) -> Slot:
        """A slot nobody else holds."""
        slot = Slot(self.free.pop() if self.free else map(self._new, self.specs))
        slot.pool = self
        return slot

    def own(self, tensors: Sequence[Any]) -> Slot:
        """`tensors` if they are a slot of this pool, else a slot with their values."""
        if isinstance(tensors, Slot) and tensors.pool is self:
            return tensors
        slot = self.take()
        for kept, given in zip(slot, tensors, strict=True):
            self._copy(kept, given)
        return slot
