"""Each operation of the interpreter against coremltools' own constant folding, or torch where that has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools_quiet import Builder, coremltools, types
from coremltools_quiet import Function as coremltools_function
from mil_cases import CASES, IMAGE, ROWS, Arguments, Case, ints, random

from runtimes.errors import BadArtifact
from runtimes.mil.evaluate import Evaluator
from runtimes.mil.program import Argument, Function, Inline, Operation, Ref
from runtimes.mil.table import ARITHMETIC, MOVES
from runtimes.mil.types import TensorType
from runtimes.mil.weights import Weights

_ELEMENTS = {"fp16": "FLOAT16", "fp32": "FLOAT32"}


def build(case: Case, arguments: Arguments) -> tuple[list[Any], list[TensorType]]:
    """What coremltools folds the operation to and the types it declares; no folding where the case has a reference."""
    variable = [name for name in ("x", "data") if name in arguments and case.reference is not None]
    inputs = {name: Builder.placeholder(arguments[name].shape) for name in variable}
    with coremltools_function(inputs, opset_version=getattr(coremltools.target, case.opset)) as function:
        result = getattr(Builder, case.kind)(**{**arguments, **function.inputs})
    built = result if isinstance(result, list | tuple) else [result]
    declared = []
    for output in built:
        name = types.builtin_to_string(output.dtype)
        declared.append(TensorType(_ELEMENTS.get(name, name.upper()), tuple(int(size) for size in output.shape)))
    return [output.val for output in built], declared


def evaluate(kind: str, arguments: Arguments, declared: list[TensorType], folder: Path) -> list[np.ndarray]:
    """The same operation in the interpreter: arrays of the mathematics as inputs, the rest as constants."""
    inputs: dict[str, np.ndarray] = {}
    bound: dict[str, Argument] = {}
    for name, value in arguments.items():
        given = value if isinstance(value, tuple) else (value,)
        values: list[Ref | Inline] = []
        for index, item in enumerate(given):
            if isinstance(item, np.ndarray) and item.dtype.kind == "f":
                inputs[f"{name}{index}"] = item
                values.append(Ref(f"{name}{index}"))
            else:
                values.append(constant(item))
        bound[name] = tuple(values)
    outputs = {f"out{index}": expected for index, expected in enumerate(declared)}
    function = Function(
        "main",
        {name: typed(value) for name, value in inputs.items()},
        {},
        (Operation(kind, bound, outputs),),
        {name: Ref(name) for name in outputs},
    )
    return list(Evaluator(function, Weights(folder)).run(inputs, {})[0].values())


def typed(value: np.ndarray) -> TensorType:
    return TensorType(value.dtype.name.upper(), value.shape)


def constant(value: Any) -> Inline:
    if isinstance(value, str):
        return Inline(TensorType("STRING", ()), value)
    array = np.asarray(value)
    if array.dtype == np.int64:
        array = array.astype(np.int32)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    return Inline(typed(array), array.tobytes())


NAMES = [f"{index}-{case.kind}" for index, case in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_agrees_in_single_precision(case: Case, tmp_path: Path) -> None:
    folded, declared = build(case, case.arguments)
    expected = folded if case.reference is None else [case.reference.numpy()]
    found = evaluate(case.kind, case.arguments, declared, tmp_path)
    for one, other in zip(found, expected, strict=True):
        assert other is not None, "coremltools folds nothing here: the case needs a reference"
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-6)


def half(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(half(item) for item in value)
    return value.astype(np.float16) if isinstance(value, np.ndarray | np.float32) and value.dtype.kind == "f" else value


def as_single(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(as_single(item) for item in value)
    return (
        value.astype(np.float32) if isinstance(value, np.ndarray | np.float16) and value.dtype == np.float16 else value
    )


HALVES = [case for case in CASES if case.reference is None and "epsilon" not in case.arguments]


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # coremltools at the ends of float16
@pytest.mark.parametrize("case", HALVES, ids=[f"{index}-{case.kind}" for index, case in enumerate(HALVES)])
def test_half_precision_is_single_precision_rounded_once(case: Case, tmp_path: Path) -> None:
    arguments = {name: half(value) for name, value in case.arguments.items()}
    _, declared = build(case, arguments)
    exact, _ = build(case, {name: as_single(value) for name, value in arguments.items()})
    found = evaluate(case.kind, arguments, declared, tmp_path)
    for one, value, kind in zip(found, exact, declared, strict=True):
        assert one.dtype == kind.dtype
        if kind.element == "FLOAT16":
            np.testing.assert_array_max_ulp(one, np.asarray(value).astype(np.float16), maxulp=1)
        else:
            np.testing.assert_array_equal(one, value)


def test_every_operation_has_a_case() -> None:
    state = {"read_state", "write_state"}  # whole programs show these
    assert {*ARITHMETIC, *MOVES} - {case.kind for case in CASES} == state


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("gather", {"x": ROWS, "indices": ints(5)}),
        ("gather", {"x": ROWS, "indices": ints(-1), "validate_indices": False}),
        ("gather_nd", {"x": ROWS, "indices": np.array([[-1]], np.int32), "validate_indices": False}),
        ("scatter", {"data": ROWS, "indices": ints(1), "updates": random(1, 4), "mode": "average"}),
        ("pad", {"x": ROWS, "pad": ints(1, 1), "mode": "wrap"}),
        ("conv", {"x": IMAGE, "weight": random(3, 4, 1, 1), "pad_type": "full"}),
        ("matmul", {"x": ROWS, "y": ROWS}),
        ("add", {"x": ROWS, "y": ROWS, "z": ROWS}),
        ("add", {"x": ROWS}),
        ("gelu", {"x": ROWS}),
        ("clip", {"x": ROWS, "alpha": ints(1, 2), "beta": np.float32(1)}),
        ("split", {"x": ROWS, "axis": 0}),
        ("reshape", {"x": ROWS, "shape": "wide"}),
    ],
)
def test_what_does_not_fit_is_refused_by_name(kind: str, arguments: Arguments, tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match=f"{kind} .out0"):
        evaluate(kind, arguments, [TensorType("FLOAT32", (1, 4))], tmp_path)
