"""One tensor on disk: how its data is mapped and written, and the types it may have; holds no data itself."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtimes.errors import BadCheckpoint, Missing

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The types a weight may have, by their safetensors names."""


@dataclass(frozen=True)
class Stored:
    """A tensor that is read when asked for.

    read: maps the data; the result must not be written to. A view of a file keeps a descriptor open for as long as it
          lives, and the pages that were read of it in memory
    """

    read: Callable[[], Tensor]

    def through(self, fn: Callable[[Tensor], Tensor]) -> Stored:
        """The tensor `fn` makes of this one, `fn` being a change of view."""
        return Stored(lambda: fn(self.read()))


def in_file(path: Path, name: str, offset: int, *, like: Tensor) -> Stored:
    """The tensor whose first element lies `offset` bytes into a file, its type, shape and stride those of `like`.

    Raises BadCheckpoint where it does not fit into the file; so does reading it once the file has changed.
    """
    dtype, shape, stride = like.dtype, like.shape, like.stride()
    count = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if like.numel() else 0
    found = path.stat()
    if offset + count * dtype.itemsize > found.st_size:
        raise BadCheckpoint(f"{path} is damaged: {name} lies beyond its {found.st_size} bytes")

    def read() -> Tensor:
        try:
            with path.open("rb") as stream:
                if _identity(os.fstat(stream.fileno())) != _identity(found):
                    raise BadCheckpoint(f"{path} has changed since it was opened", hint="run it again")
                return _map(stream.fileno(), offset, dtype, count).as_strided(shape, stride)
        except OSError as error:
            raise Missing(f"cannot read {path}: {error.strerror}") from error

    return Stored(read)


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _map(file: int, offset: int, dtype: torch.dtype, count: int) -> Tensor:
    """A view of `count` elements: a mapping of its own for each, so that one that is dropped gives its pages back."""
    if not count:
        return torch.empty(0, dtype=dtype)
    before = offset % mmap.ALLOCATIONGRANULARITY
    pages = mmap.mmap(file, before + count * dtype.itemsize, access=mmap.ACCESS_COPY, offset=offset - before)
    return torch.frombuffer(pages, dtype=dtype, count=count, offset=before)


def fill(path: Path, offsets: Mapping[str, int], value: Callable[[str], Tensor]) -> None:
    """Write the contiguous tensor `value(name)` at each offset of a file, one in memory at a time; raises OSError."""
    with path.open("r+b") as stream:
        for name, offset in offsets.items():
            stream.seek(offset)
            content: Any = value(name).reshape(-1).view(torch.uint8).numpy()
            stream.write(content)


def not_a_weight(path: Path, name: str, dtype: object) -> BadCheckpoint:
    """The error for a tensor whose type is not in FLOATS: integers and 8-bit floats need scales we do not know."""
    return BadCheckpoint(
        f"{path}: {name} is stored as {dtype}, a quantised type",
        hint="export the checkpoint it was quantised from",
    )
