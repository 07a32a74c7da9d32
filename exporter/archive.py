"""Writes torch.export programs as .pt2 archives that say nothing of where they were made; it traces nothing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch.export import ExportedProgram


def save(program: ExportedProgram, path: Path) -> None:
    """Write `program`, whose nodes lose their stack traces; raises OSError."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it says where we were built
    with path.open("wb") as file:
        stream = _Patient(file)
        torch.export.save(program, cast(IO[bytes], stream))
    if stream.error:
        raise stream.error


class _Patient(io.RawIOBase):
    """Keeps an OSError for later: torch's C++ writer ends the process where a write fails, as on a full disk."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def write(self, data: Any) -> int:
        """All of `data`, or nothing since the first failure."""
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)
