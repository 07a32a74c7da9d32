"""Reads .npz files of plain numbers without trusting a size in them; it writes none.

numpy.load allocates what an array's header asks for before it looks whether that many bytes follow.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from runtimes.contract import Array
from runtimes.errors import BadArtifact

FORMAT: Any = npy
KINDS = "fiu"
"""Floating-point numbers and integers, as numpy's dtype.kind."""


def read(path: Path) -> dict[str, Array]:
    """The arrays by name, as numpy.savez writes them; raises BadArtifact. Takes no more memory than the file has."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in archive.infolist()}
    except Exception as error:  # zipfile and numpy raise what an altered file leads them to
        raise BadArtifact(f"{path} holds no tensors: {error or type(error).__name__}", hint="export again") from error


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry.filename} is compressed")
    with archive.open(entry) as stream:
        if (version := FORMAT.read_magic(stream)) != (1, 0):
            raise ValueError(f"{entry.filename} is of version {version}")
        shape, fortran, dtype = FORMAT.read_array_header_1_0(stream)
        if dtype.kind not in KINDS:
            raise ValueError(f"{entry.filename} holds {dtype}")
        content = stream.read()
    if min(shape, default=0) < 0 or len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{entry.filename} has {len(content)} bytes, which is not {dtype} of shape {shape}")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
