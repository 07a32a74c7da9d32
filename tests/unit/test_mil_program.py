"""Whole packages: converted torch models run as torch does, whatever the target, precision or kind of state."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import mil_models
import numpy as np
import pytest
from mil_models import TOKENS, ZERO, largest_difference, steps, torch_steps

from runtimes.errors import WrongCall
from runtimes.mil.evaluate import Evaluator
from runtimes.mil.package import Package
from runtimes.mil.program import Function, Operation, Ref
from runtimes.mil.types import TensorType
from runtimes.mil.weights import Weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mil_models.save(tmp_path_factory.mktemp("single") / "model.mlpackage", precision="fp32")


def test_single_precision_agrees_with_torch(single: Path) -> None:
    assert largest_difference(steps(single), torch_steps()) < 2e-6


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
def test_older_targets_agree_with_torch(target: str, tmp_path: Path) -> None:
    path = mil_models.save(tmp_path / "model.mlpackage", target=target, precision="fp32")
    assert largest_difference(steps(path), torch_steps()) < 2e-6


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_half_precision_agrees_with_torch_within_its_rounding(target: str, tmp_path: Path) -> None:
    path = mil_models.save(tmp_path / "model.mlpackage", target=target, precision="fp16")
    assert 1e-4 < largest_difference(steps(path), torch_steps()) < 5e-3


def test_a_package_that_keeps_its_state_agrees_with_torch(tmp_path: Path) -> None:
    package = Package(mil_models.save_stateful(tmp_path / "model.mlpackage"))
    evaluator = Evaluator(package.function(None), package.weights)
    states = {"memory": ZERO.astype(np.float16)}
    results = []
    for token in TOKENS:
        before = states["memory"].copy()
        given = states
        outputs, states = evaluator.run({"tokens": np.array([token], np.int32)}, given)
        np.testing.assert_array_equal(given["memory"], before)
        results.append((outputs["logits"], states["memory"]))
    assert 1e-4 < largest_difference(results, torch_steps()) < 5e-3


def test_inputs_are_checked(single: Path) -> None:
    package = Package(single)
    evaluator = Evaluator(package.function(None), package.weights)
    token = np.array([3], np.int32)
    for inputs, reason in (
        ({"tokens": token}, "input memory_in is missing"),
        ({"tokens": token, "memory_in": ZERO, "memory": ZERO}, "input memory is unknown"),
        ({"tokens": token, "memory_in": ZERO[:1]}, r"memory_in is float32\[1, 16, 16\]"),
        ({"tokens": token.astype(np.int64), "memory_in": ZERO}, "tokens is int64"),
    ):
        with pytest.raises(WrongCall, match=reason):
            evaluator.run(inputs, {})


def test_values_are_dropped_after_their_last_use(tmp_path: Path) -> None:
    kind = TensorType("FLOAT32", (1 << 18,))  # 1 MiB
    names = [f"value{index}" for index in range(30)]
    chain = tuple(
        Operation("add", {"x": (Ref(one),), "y": (Ref(one),)}, {other: kind})
        for one, other in itertools.pairwise(names)
    )
    function = Function("main", {names[0]: kind}, {}, chain, {"sum": Ref(names[-1])})
    evaluator = Evaluator(function, Weights(tmp_path))
    value = np.ones(kind.shape, np.float32)
    tracemalloc.start()
    outputs, _ = evaluator.run({names[0]: value}, {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert outputs["sum"][0] == 2.0**29
    assert peak < 4 * kind.bytes
