"""How loud each channel of a squared ReLU is beside the others, read from the matrices around it; it changes neither.

A feed-forward is V @ relu(K @ x)^2. A channel that is far louder than the others takes all of the range in which
activations are rounded. Dividing a row of K by f and multiplying the column of V by f^2 makes it quieter and changes
nothing else, in float32 not even the last bit where f is a power of two.
"""

from __future__ import annotations

import numpy as np

from runtimes.contract import Array


def factors(key: Array, value: Array) -> Array:
    """K (F, C), V (C, F) -> (F,) powers of two, for equal shares in the activations and in V; 1 for a dead channel."""
    into = np.linalg.norm(key, axis=1)
    out = np.linalg.norm(value, axis=0)
    alive = (into > 0) & (out > 0)
    loudness = (
        np.log2(into, where=alive, out=np.zeros_like(into)) - np.log2(out, where=alive, out=np.zeros_like(out)) / 2
    )
    typical = np.median(loudness[alive]) if alive.any() else 0
    found: Array = np.exp2(np.where(alive, np.rint((loudness - typical) / 2), 0)).astype(np.float32)
    return found
