"""The kernels' shared library, compiled by this machine's compiler when it is first asked for."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from runtimes.compiling import TUNE, VARIABLES, Library
from runtimes.errors import Missing

__all__ = ["VARIABLES", "library", "missing"]

SOURCE = Path(__file__).parent / "kernels.cpp"
FLAGS = ("-O3", TUNE, "-std=c++17", "-ffp-contract=fast", "-fvisibility=hidden", "-shared", "-fPIC")


def missing() -> str | None:
    """Why the kernels cannot be built here, or None; it compiles nothing."""
    if find_spec("onnx") is None:
        return "the Python package onnx is not installed"
    return _kernels().missing()


def library(*flags: str) -> Path:
    """The compiled library for this machine, built now if it was not yet; `flags` follow our own. Raises Missing."""
    if reason := missing():
        raise Missing(reason, hint="install g++ or clang, or run on ort:cpu")
    return _kernels(*flags).built()


def _kernels(*flags: str) -> Library:
    return Library("the native kernels", SOURCE, (*FLAGS, *flags), instead="ort:cpu")
