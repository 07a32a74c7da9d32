"""Files that list the matrices to keep, and the names held against a model's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from exporter import keep

PARAMETERS = ("head.weight", "blocks.0.att.key.weight", "blocks.0.ffn.value.weight")


def seeds(folder: Path) -> Iterator[bytes]:
    yield b"head, blocks.0.att.key\n# why\nblocks.*.ffn.val[uv]e.weight\n"


def read(data: bytes, folder: Path) -> None:
    path = folder / "keep.txt"
    path.write_bytes(data)
    keep.require_known({keep.OPTION.name: keep.read(str(path))}, PARAMETERS)
