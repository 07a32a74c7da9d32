"""State tensors come back to their pool when nobody holds them any more, and not before."""

from __future__ import annotations

import numpy as np

from runtimes.buffers import Pool, Slot
from runtimes.contract import TensorSpec

SPECS = (TensorSpec("a", (1, 2), "float32", ("batch", "channel")), TensorSpec("b", (3,), "float16", ("x",)))


def addresses(slot: Slot) -> list[int]:
    return [array.ctypes.data for array in slot]


def test_a_slot_has_the_tensors_of_its_specs() -> None:
    slot = Pool(SPECS).take()
    assert [(array.shape, str(array.dtype)) for array in slot] == [((1, 2), "float32"), ((3,), "float16")]


def test_a_loop_that_drops_each_state_after_its_step_uses_two_slots() -> None:
    pool, seen = Pool(SPECS), set()
    state = pool.take()
    for _ in range(10):
        new = pool.take()
        seen |= {addresses(state)[0], addresses(new)[0]}
        state = new
    assert len(seen) == 2


def test_a_slot_that_is_held_is_not_handed_out_again() -> None:
    pool = Pool(SPECS)
    held = [pool.take() for _ in range(5)]
    assert len({address for slot in held for address in addresses(slot)}) == 10


def test_a_pool_takes_its_own_slots_as_they_are_and_copies_anything_else() -> None:
    pool = Pool(SPECS)
    own, foreign = pool.take(), Pool(SPECS).take()
    for array in foreign:
        array[:] = 4
    assert pool.own(own) is own
    for given in (foreign, tuple(foreign)):
        copied = pool.own(given)
        foreign[0][:] = 5
        assert copied.pool is pool
        np.testing.assert_array_equal(copied[0], [[4, 4]])
        foreign[0][:] = 4
