"""Reads a package's constants: from the model file, from weight files, or expanded from compressed ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtimes.contract import Array
from runtimes.errors import BadArtifact, did_you_mean
from runtimes.mil.binding import check_names, parameters
from runtimes.mil.blob import WeightFile
from runtimes.mil.precision import rounded, widened
from runtimes.mil.program import Constant, Expanded, Inline, Stored
from runtimes.mil.table import CONSTEXPR
from runtimes.untrusted import leaves

_MODEL_FOLDER = "@model_path/"


class Weights:
    """Constants by description, so that functions of one package share what they have in common.

    Float32 copies of half-precision constants and expanded constants are kept; the rest stays mapped from disk.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` holds the model file."""
        self._folder = folder
        self._files: dict[str, WeightFile] = {}
        self._expanded: dict[Constant, Array] = {}
        self._wide: dict[Constant, Array] = {}

    def array(self, constant: Constant) -> Array | str:
        """The constant in its declared type, or a text; raises BadArtifact."""
        if isinstance(constant, Inline):
            if isinstance(constant.data, str):
                return constant.data
            return constant.type.unpack(np.frombuffer(constant.data, np.uint8))
        if isinstance(constant, Stored):
            return self._file(constant.file).read(constant.offset, constant.type)
        if constant not in self._expanded:
            self._expanded[constant] = self._expand(constant)
        return self._expanded[constant]

    def wide(self, constant: Constant) -> Array | str:
        """The constant as arithmetic sees it: float16 widened to float32, once."""
        if constant not in self._wide:
            value = self._expand(constant) if isinstance(constant, Expanded) else self.array(constant)
            if isinstance(value, str):
                return value
            self._wide[constant] = widened(value)
        return self._wide[constant]

    def _file(self, name: str) -> WeightFile:
        if name not in self._files:
            inside = name.removeprefix(_MODEL_FOLDER)
            if not name.startswith(_MODEL_FOLDER) or leaves(inside) or not inside.isprintable():
                raise BadArtifact(f"weight file {name!r} is not inside the package")
            self._files[name] = WeightFile(self._folder / inside)
        return self._files[name]

    def _expand(self, constant: Expanded) -> Array:
        """Run the constexpr operation; the output this constant is."""
        if constant.kind not in CONSTEXPR:
            hint = did_you_mean(constant.kind, CONSTEXPR)
            raise BadArtifact(f"operation {constant.kind} is unknown to this interpreter", hint=hint)
        compute = CONSTEXPR[constant.kind]
        try:
            check_names(compute, [name for name, _ in constant.arguments])
            wanted = parameters(compute)
            arguments = {name: wanted[name].convert(self.array(value)) for name, value in constant.arguments}
            results = compute(**arguments)
            value = rounded(results[constant.output] if isinstance(results, tuple) else results, constant.type.dtype)
            if value.shape != constant.type.shape:
                raise ValueError(f"computes shape {value.shape}, declared {constant.type.shape}")
        except (ValueError, IndexError, TypeError) as error:
            raise BadArtifact(f"operation {constant.kind} of {constant.type}: {error}") from error
        return value
