"""The one rule for half precision: arithmetic is float32, and every operation's result is rounded to float16.

This is one possible machine, not a particular one: accelerators differ in how they accumulate, in their
approximations of exp or tanh, and in whether they flush subnormal numbers to zero. Another is ops_half_sums.py.
"""

from __future__ import annotations

import numpy as np

from runtimes.contract import Array


def widened(value: Array) -> Array:
    """What arithmetic sees of a value: float32 instead of float16, anything else as it is."""
    return value.astype(np.float32) if value.dtype == np.float16 else value


def rounded(value: Array, dtype: np.dtype[np.generic]) -> Array:
    """What arithmetic leaves: the declared type; raises ValueError where that is not a narrowing of the same kind."""
    if value.dtype == dtype:
        return value
    if value.dtype.kind != dtype.kind and {value.dtype.kind, dtype.kind} != set("iu"):
        raise ValueError(f"computes {value.dtype}, declared {dtype}")
    return value.astype(dtype)
