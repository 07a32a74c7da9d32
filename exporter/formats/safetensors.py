"""Reads and writes .safetensors files without holding their data in memory; knows no tensor names.

The format: the length of the header (8 bytes, little-endian), the header (JSON, each tensor's type, shape and place),
the tensors one after another. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from exporter.formats.sniff import DOWNLOAD_AGAIN
from exporter.formats.stored import FLOATS, Stored, fill, in_file, not_a_weight
from runtimes.errors import BadCheckpoint

LENGTH = 8  # bytes of the header's length


def read(path: Path) -> dict[str, Stored]:
    """Names to tensors; raises BadCheckpoint."""
    try:
        with safe_open(path, framework="numpy"):  # checks the header, its places against the file's size too
            pass
    except SafetensorError as error:
        raise BadCheckpoint(f"{path} is truncated or damaged: {error}", hint=DOWNLOAD_AGAIN) from error
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    if not header:
        raise BadCheckpoint(f"{path} holds no tensors")
    return {name: _stored(path, LENGTH + length, name, entry) for name, entry in header.items()}


def _stored(path: Path, data: int, name: str, entry: Mapping[str, Any]) -> Stored:
    if entry["dtype"] not in FLOATS:
        raise not_a_weight(path, name, entry["dtype"])
    like = torch.empty(entry["shape"], dtype=FLOATS[entry["dtype"]], device="meta")
    return in_file(path, name, data + entry["data_offsets"][0], like=like)


def write(
    path: Path, dtype: torch.dtype, shapes: Mapping[str, tuple[int, ...]], value: Callable[[str], Tensor]
) -> None:
    """Write tensors of one type, each asked for once, by name; the bytes are those the library writes.

    Raises OSError.
    """
    names = {held: name for name, held in FLOATS.items()}
    header, starts, end = {}, {}, 0
    for name, shape in sorted(shapes.items()):
        starts[name], end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": (starts[name], end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH)
    path.write_bytes(len(text).to_bytes(LENGTH, "little") + text)
    fill(path, {name: LENGTH + len(text) + start for name, start in starts.items()}, value)
