"""The `rwkv` package (fp32, CPU) behind our state names: an implementation that shares no line with this project."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from runtimes.contract import Array, Session
from tests.models import case

RUNS = ("4", "5.0", "5.1", "5.2", "6", "7", "7a")
"""The versions that the package has code for."""


@dataclass(frozen=True)
class Trace:
    """What a model did with a token sequence from its initial state.

    logits: (T, V)
    states: name -> (T, *shape), the state after every token
    """

    logits: Array
    states: Mapping[str, Array]

    def tensors(self) -> dict[str, Array]:
        """The states, and the logits under "logits"."""
        return {"logits": self.logits, **self.states}


def trace_of(session: Session, tokens: Sequence[int]) -> Trace:
    """Step a session through `tokens`."""
    state, logits, states = session.initial_state(), [], []
    for token in tokens:
        step = session.step(token, state)
        state = step.state
        logits.append(step.logits)
        states.append(session.read_state(state))
    return Trace(np.stack(logits), {name: np.stack([state[name] for state in states]) for name in states[0]})


def errors(got: Trace, want: Trace) -> dict[str, float]:
    """Per tensor, the largest absolute error over all steps / the largest absolute value wanted; NaN counts as inf."""
    ours, theirs = got.tensors(), want.tensors()
    assert list(ours) == list(theirs)
    out = {}
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, name
        error = np.abs(ours[name].astype(np.float64) - expected).max() / np.abs(expected).max()
        out[name] = float(np.nan_to_num(error, nan=np.inf))
    return out


class Oracle:
    """One checkpoint in the `rwkv` package.

    Its states need no transposing: per layer [shift, aa, bb, pp, shift] in version 4, else [shift, matrix, shift], the
    matrix (head, key, value) in 5 and 6 (`k.view(H, N, 1) @ v.view(H, 1, N)` there) and (head, value, key) in 7
    (`v.view(H, N, 1) @ k.view(H, 1, N)`). All are fp32 here and lack the batch axis.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], version: str) -> None:
        middle = ["aa", "bb", "pp"] if version == "4" else ["wkv"]
        layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        inner = ["att.shift", *(f"att.{name}" for name in middle), "ffn.shift"]
        self._names = [f"blocks.{i}.{name}" for i in range(layers) for name in inner]
        environment = _environment(version)
        module = _package(*environment.items())
        with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, environment), _quietly():
            torch.save(dict(sorted(weights.items(), key=_telling_first)), Path(folder) / "model.pth")
            self._model: Any = module.RWKV(str(Path(folder) / "model"), "cpu fp32")

    def trace(self, tokens: Sequence[int], start: Mapping[str, torch.Tensor] | None = None) -> Trace:
        """Feed `tokens` one by one from the initial state, with the tensors of `start` (no batch axis) in it."""
        state, logits, states = self._start(start) if start else None, [], []
        for token in tokens:
            out, state = self._model.forward([token], state)
            logits.append(out.numpy().copy())
            states.append([tensor.numpy()[None].copy() for tensor in state])
        columns = zip(self._names, zip(*states, strict=True), strict=True)
        return Trace(np.stack(logits), {name: np.stack(column) for name, column in columns})

    def _start(self, tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Zeros where nothing is given; version 7 only, the others take `time_state` from their checkpoint."""
        zeros = dict(zip(self._names, self._model.generate_zero_state(), strict=True))
        assert all(zeros[name].shape == tensor.shape for name, tensor in tensors.items())
        return [tensors.get(name, zero).clone() for name, zero in zeros.items()]


@functools.cache
def package_trace(version: str, shape: str) -> Trace:
    """What the package does with `case(version, shape)`."""
    weights, tokens = case(version, shape)
    return Oracle(weights, version).trace(tokens)


def _environment(version: str) -> dict[str, str]:
    """What the package reads, some of it while it is imported and some while a model is loaded."""
    seven, deep = version in ("7", "7a"), version == "7a"
    return {
        "RWKV_V7_ON": str(int(seven)),
        "RWKV_DE_VERSION": str(int(deep)),
        "RWKV_JIT_ON": "0",
        "RWKV_CUDA_ON": "0",
    }


@functools.cache
def _package(*environment: tuple[str, str]) -> ModuleType:
    """A copy of rwkv.model imported under `environment`; its classes differ from one environment to the next."""
    spec = importlib.util.find_spec("rwkv.model")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with patch.dict(os.environ, dict(environment)), _quietly():
        spec.loader.exec_module(module)
    return module


def _telling_first(item: tuple[str, torch.Tensor]) -> tuple[bool, str]:
    """Sort key: the package tells versions apart while it reads, and must meet these names before the others."""
    return not any(word in item[0] for word in ("ln_x", "time_maa")), item[0]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the package's prints, its deprecated calls, and its garbage collection after every layer."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), patch("gc.collect"):
        warnings.simplefilter("ignore")
        yield
