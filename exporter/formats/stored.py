"""One tensor on disk: how to map its data, and the types it may have; holds no data itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from runtimes.errors import BadCheckpoint

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The types a weight may have, by their safetensors names."""


@dataclass(frozen=True)
class Stored:
    """A tensor that is read when asked for.

    read: maps the data; the result is a view of the file and must not be written to
    """

    read: Callable[[], Tensor]

    def through(self, fn: Callable[[Tensor], Tensor]) -> Stored:
        """The tensor `fn` makes of this one, `fn` being a change of view."""
        return Stored(lambda: fn(self.read()))


def not_a_weight(path: Path, name: str, dtype: object) -> BadCheckpoint:
    """The error for a tensor whose type is not in FLOATS: integers and 8-bit floats need scales we do not know."""
    return BadCheckpoint(
        f"{path}: {name} is stored as {dtype}, a quantised type",
        hint="export the checkpoint it was quantised from",
    )
