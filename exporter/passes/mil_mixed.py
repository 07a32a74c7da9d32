"""Which operations of a float16 ML Program stay float32: those per head, and exponentials; it rewrites nothing."""

from __future__ import annotations

from typing import Any

from runtimes.manifest import Kept

KEPT = Kept(
    "state, and all arithmetic per head: decay, key normalisation, recurrence, group norm",
    "float32",
    "a decay of 0.9998 is 1 in float16, and sums over a long context lose what is small beside them",
)


def wide(operation: Any) -> bool:
    """Whether it has heads among its axes, as tensors of three and more have, or is an exponential."""
    tensors = (*operation.outputs, *(value for value in operation.inputs.values() if hasattr(value, "rank")))
    return operation.op_type == "exp" or any(tensor.rank > 2 for tensor in tensors)
