"""Reads .safetensors files, mapped on disk; knows no tensor names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from exporter.formats.sniff import DOWNLOAD_AGAIN
from exporter.formats.stored import FLOATS, Stored, not_a_weight
from runtimes.errors import BadCheckpoint


def read(path: Path) -> dict[str, Stored]:
    """Names to tensors; raises BadCheckpoint."""
    try:
        file: Any = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise BadCheckpoint(f"{path} is truncated or damaged: {error}", hint=DOWNLOAD_AGAIN) from error
    names = list(file.keys())
    if not names:
        raise BadCheckpoint(f"{path} holds no tensors")
    return {name: _stored(path, file, name) for name in names}


def _stored(path: Path, file: Any, name: str) -> Stored:
    dtype = file.get_slice(name).get_dtype()
    if dtype not in FLOATS:
        raise not_a_weight(path, name, dtype)
    return Stored(lambda: file.get_tensor(name))
