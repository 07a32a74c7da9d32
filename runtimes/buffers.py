"""State tensors that are used again once nobody holds them, so that stepping allocates none; it copies no values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtimes.contract import Array, TensorSpec


class Slot(tuple[Array, ...]):
    """The tensors of one state; they go back to their pool when the last reference to the slot is gone."""

    pool: Pool

    def __del__(self) -> None:
        self.pool.free.append(tuple(self))


class Pool:
    """Hands out slots of uninitialised tensors. A decode loop, which drops each state after its step, uses two."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self.specs = tuple(specs)
        self.free: list[tuple[Array, ...]] = []

    def take(self) -> Slot:
        """A slot nobody else holds."""
        slot = Slot(self.free.pop() if self.free else (np.empty(spec.shape, spec.dtype) for spec in self.specs))
        slot.pool = self
        return slot

    def own(self, tensors: Sequence[Array]) -> Slot:
        """`tensors` if they are a slot of this pool, else a slot with their values."""
        if isinstance(tensors, Slot) and tensors.pool is self:
            return tensors
        slot = self.take()
        for kept, given in zip(slot, tensors, strict=True):
            np.copyto(kept, given)
        return slot
