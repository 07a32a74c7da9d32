"""Programs stepped by the executorch wheel's own Python bindings; what they hand out is copied into our arrays."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from runtimes.contract import Array
from runtimes.errors import BadArtifact, WrongCall
from runtimes.pte import threads as pool
from runtimes.pte.ports import TYPES, Port
from runtimes.pte.runner.build import folder

QUANTIZED = "libexecutorch_kernels_quantized.so"
"""Kernels that the bindings come without: rows of quantised embedding tables."""


class Program:
    """A program file, mapped; raises BadArtifact where ExecuTorch refuses it. `traced`: it records what it does."""

    def __init__(self, path: Path, weights: Path | None, *, traced: bool = False) -> None:
        self._path, self._program, self._methods = path, None, dict[str, Any]()
        with _told_if_it_fails(path):
            library = bindings()
            have = library._threadpool_get_thread_count()
            if (wanted := pool.agreed(have)) != have:
                library._unsafe_reset_threadpool(wanted)
            data = str(weights) if weights else None
            self._program = library._load_program(
                str(path), enable_etdump=traced, data_path=data, program_verification=library.Verification.Minimal
            )
        pool.hold(self)

    def method(self, name: str) -> Method:
        """The method, its weights packed for this processor; raises BadArtifact."""
        with _told_if_it_fails(self._path):
            self._methods[name] = self.program.load_method(name)
            return Method(self, name)

    def loaded(self, name: str) -> Any:
        """The bindings' own method; raises WrongCall once the program is closed."""
        if name not in self._methods:
            raise WrongCall("the session is closed")
        return self._methods[name]

    @property
    def program(self) -> Any:
        """The bindings' object; raises WrongCall once it is closed."""
        if self._program is None:
            raise WrongCall("the session is closed")
        return self._program

    def close(self) -> None:
        """Give back its memory; its methods are gone with it. What delegates say when they go is not told."""
        with tempfile.TemporaryFile() as log, standard_error_to(log):
            self._methods.clear()
            self._program = None
        pool.release(self)


class Method:
    """A loaded method; it holds its program."""

    def __init__(self, program: Program, name: str) -> None:
        self._program, self._name = program, name
        self._tensors: dict[int, list[Any]] = {}  # by a state's first tensor: a decode loop has two states
        meta = program.loaded(name).method_meta()
        inputs = [meta.input_tensor_meta(index) for index in range(meta.num_inputs())]
        if not inputs or meta.num_outputs() != len(inputs):
            raise BadArtifact(f"{name} takes {len(inputs)} tensors and gives {meta.num_outputs()}: it is no step")
        self.ports = [_port(tensor) for tensor in (inputs[0], meta.output_tensor_meta(0), *inputs[1:])]

    def step(self, ids: Array, before: Sequence[Array], after: Sequence[Array], logits: Array) -> None:
        """One call; `ids` are int64. The method's own outputs live until its next call: their values are copied."""
        import torch

        method = self._program.loaded(self._name)
        tokens = torch.from_numpy(ids.astype(self.ports[0].dtype, copy=False))
        found = method.call([tokens, *self._wrapped(before)], clone_outputs=False)
        for kept, given in zip((logits, *after), found, strict=True):
            # numpy copies on this thread; torch would wake a pool of its own beside ExecuTorch's
            np.copyto(kept, given.numpy().reshape(kept.shape))

    def _wrapped(self, tensors: Sequence[Array]) -> list[Any]:
        """Our arrays as torch tensors. They are a pool's, which keeps them as long as the session lives."""
        import torch

        key = id(tensors[0])
        if key not in self._tensors:
            self._tensors[key] = [torch.from_numpy(array) for array in tensors]
        return self._tensors[key]


@cache
def bindings() -> Any:
    """The wheel's extension module, with all kernels the wheel has."""
    from executorch.extension.pybindings import portable_lib

    wheel = folder()
    if wheel and (wheel / "lib" / QUANTIZED).exists():
        ctypes.CDLL(str(wheel / "lib" / QUANTIZED))
    return portable_lib


def delegates() -> frozenset[str]:
    """Those that the wheel can run."""
    with tempfile.TemporaryFile() as log, standard_error_to(log):
        return frozenset(bindings()._get_registered_backend_names())


@contextmanager
def standard_error_to(file: IO[bytes]) -> Iterator[None]:
    """Native code writes to file descriptor 2, which Python's redirect_stderr does not move."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _told_if_it_fails(path: Path) -> Iterator[None]:
    """What the runtime logs in the block is told only if it fails; raises BadArtifact."""
    with tempfile.TemporaryFile() as log:
        try:
            with standard_error_to(log):
                yield
        except RuntimeError as error:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()[-1:]
            raise BadArtifact(f"executorch cannot load {path.name}: {' '.join([str(error), *said])}") from error


def _port(tensor: Any) -> Port:
    return Port(TYPES.get(tensor.dtype(), f"type {tensor.dtype()}"), tensor.nbytes())
