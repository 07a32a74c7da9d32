"""model.mlmodel of a Core ML package, parsed, linked and run by the interpreter, beside its weight file."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from exporter.quiet import quiet
from runtimes.mil.evaluate import Evaluator
from runtimes.mil.package import Package, model_file
from runtimes.mil.program import Function
from runtimes.mil.types import TensorType

MOST = 1 << 16
"""Elements of an input up to which a program is also run."""


def package(folder: Path) -> Path:
    """A small package in `folder`: arithmetic, shapes, weights as palettes and as scaled integers."""
    path = folder / "model.mlpackage"
    return path if path.exists() else Path(shutil.copytree(Path(_converted().name) / path.name, path))


@cache
def _converted() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    with quiet():
        _convert(Path(folder.name) / "model.mlpackage")
    return folder


def _convert(path: Path) -> None:
    import coremltools
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    dice = np.random.default_rng(0)
    dense = dice.normal(size=(16, 16)).astype(np.float32)

    @mb.program(input_specs=[mb.TensorSpec((1, 16))], opset_version=coremltools.target.iOS18)
    def program(x: Any) -> Any:
        half = dense.astype(np.float16)
        bits = dice.integers(0, 16, (16, 16))
        scaled = mb.constexpr_blockwise_shift_scale(data=bits.astype(np.int8), scale=half[:, :4])
        indices = bits.astype(types.np_uint4_dtype)
        palette = mb.constexpr_lut_to_dense(indices=indices, lut=half[:1].reshape(1, 1, 16, 1))
        y = mb.linear(x=x, weight=dense, bias=dense[0])
        y = mb.layer_norm(x=y, axes=[-1], gamma=dense[1], beta=dense[2], epsilon=1e-5)
        y = mb.concat(values=[y, mb.exp(x=x)], axis=0)
        for weight in (scaled, palette):
            y = mb.matmul(x=y, y=mb.cast(x=weight, dtype="fp32"))
        y = mb.slice_by_index(x=mb.transpose(x=y, perm=[1, 0]), begin=[0, 0], end=[8, 2])
        return mb.reduce_sum(x=mb.reshape(x=mb.sigmoid(x=y), shape=[2, 8]), axes=[-1], keep_dims=True)

    model = coremltools.convert(
        program,
        minimum_deployment_target=coremltools.target.iOS18,
        compute_precision=coremltools.precision.FLOAT32,
        skip_model_load=True,
    )
    model.save(str(path))


def copy(source: Path, folder: Path) -> Path:
    """Another one, to be changed."""
    path = folder / "changed.mlpackage"
    return path if path.exists() else Path(shutil.copytree(source, path))


def seeds(folder: Path) -> Iterator[bytes]:
    yield model_file(package(folder)).read_bytes()


def read(data: bytes, folder: Path) -> None:
    changed = copy(package(folder), folder)
    model_file(changed).write_bytes(data)
    run(changed)


def run(path: Path) -> None:
    """Every function, with inputs of ones."""
    opened = Package(path)
    for name in opened.functions:
        function = opened.function(name)
        evaluator = Evaluator(function, opened.weights)
        if _small(function):
            evaluator.run(_ones(function.inputs), _ones(function.states))


def _small(function: Function) -> bool:
    return all(math.prod(kind.shape) <= MOST for kind in (*function.inputs.values(), *function.states.values()))


def _ones(types: Any) -> dict[str, Any]:
    return {name: np.ones(kind.shape, kind.dtype) for name, kind in types.items() if isinstance(kind, TensorType)}
