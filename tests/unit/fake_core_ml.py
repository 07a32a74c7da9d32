"""A stand-in for Core ML that our interpreter computes: what MLModel and MLState of coremltools take, no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools_quiet import coremltools

from runtimes.backends import coreml
from runtimes.contract import Array, Placement
from runtimes.mil.evaluate import Evaluator
from runtimes.mil.package import Package


class State:
    """MLState: zeros; written and read by name, in float32."""

    def __init__(self, tensors: dict[str, Array]) -> None:
        self.tensors = tensors

    def write_state(self, name: str, value: Array) -> None:
        assert value.dtype == np.float32 and value.shape == self.tensors[name].shape
        self.tensors[name] = value.astype(self.tensors[name].dtype)

    def read_state(self, name: str) -> Array:
        return self.tensors[name].astype(np.float32)


class Model:
    """MLModel: exactly its inputs, and a state where it has one; outputs by name."""

    def __init__(self, path: str, compute_units: Any, function_name: str | None) -> None:
        package = Package(Path(path))
        self.evaluator = Evaluator(package.function(function_name), package.weights)
        self.function_name = function_name

    def get_compiled_model_path(self) -> str:
        return ""

    def make_state(self) -> State:
        states = self.evaluator.function.states
        return State({name: np.zeros(kind.shape, kind.dtype) for name, kind in states.items()})

    def predict(self, given: dict[str, Array], state: State | None = None) -> dict[str, Array]:
        if state is None:
            outputs, _ = self.evaluator.run(given, {})
        else:
            outputs, state.tensors = self.evaluator.run(given, state.tensors)
        return outputs


def install(patch: pytest.MonkeyPatch) -> None:
    """Have the coreml runtime open packages by the stand-in, and not look for compute plans."""
    patch.setattr(coremltools.models, "MLModel", Model)
    patch.setattr(coreml, "_placement", lambda *_: Placement("coreml:cpu", "coreml:cpu", {}))
