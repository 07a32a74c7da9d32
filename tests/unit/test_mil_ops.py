"""Each operation of the interpreter against coremltools' own constant folding, or torch where that has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools_quiet import Builder, coremltools, types
from coremltools_quiet import Function as coremltools_function

from runtimes.errors import BadArtifact
from runtimes.mil.evaluate import Evaluator
from runtimes.mil.program import Argument, Function, Inline, Operation, Ref
from runtimes.mil.table import ARITHMETIC, MOVES
from runtimes.mil.types import TensorType
from runtimes.mil.weights import Weights

Arguments = Mapping[str, Any]

_ELEMENTS = {"fp16": "FLOAT16", "fp32": "FLOAT32"}


@dataclass(frozen=True)
class Case:
    """An operation with arguments; `reference` computes the result where coremltools folds no constants."""

    kind: str
    arguments: Arguments
    opset: str = "iOS18"
    reference: Callable[[], Any] | None = None


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


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def flags(*values: bool) -> np.ndarray:
    return np.array(values)


X = random(2, 3, 4)
Y = random(3, 1)
POSITIVE = np.abs(X) + np.float32(0.1)
ROWS = random(5, 4)
IMAGE = random(2, 4, 6, 5)


def torch_of(function: Callable[..., torch.Tensor], *values: Any) -> Callable[[], np.ndarray]:
    tensors = [torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in values]
    return lambda: function(*tensors).numpy()


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, **options: Any) -> Case:
    """A conv case with torch's options; `padding` becomes MIL's custom pad."""
    given = [None if bias is None else torch.from_numpy(bias)]
    convolve = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}[x.ndim]
    arguments: dict[str, Any] = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    if "padding" in options:
        arguments |= {"pad_type": "custom", "pad": np.repeat(ints(*options["padding"]), 2)}
    if "stride" in options:
        arguments["strides"] = ints(*options["stride"])
    if "dilation" in options:
        arguments["dilations"] = ints(*options["dilation"])
    if "groups" in options:
        arguments["groups"] = options["groups"]
    return Case(
        "conv",
        arguments,
        reference=lambda: convolve(torch.from_numpy(x), torch.from_numpy(weight), *given, **options).numpy(),
    )


def same_padded(pad_type: str, left: int, right: int) -> Case:
    """Stride 2 over 6 positions with a kernel of 4: three positions, and an even padding need."""
    x, weight = random(1, 2, 7), random(3, 2, 4)
    padded = torch.nn.functional.pad(torch.from_numpy(x), (left, right))
    return Case(
        "conv",
        {"x": x, "weight": weight, "strides": ints(2), "pad_type": pad_type},
        reference=lambda: torch.conv1d(padded, torch.from_numpy(weight), stride=2).numpy(),
    )


def scattered(mode: str, reduce: str) -> Case:
    """Index 2 is hit twice."""
    indices, updates = ints(2, 0, 2), random(3, 4)
    places = torch.from_numpy(indices).long()[:, None].expand(3, 4)
    expected = torch.from_numpy(ROWS).scatter_reduce(0, places, torch.from_numpy(updates), reduce)
    return Case(
        "scatter",
        {"data": ROWS, "indices": indices, "updates": updates, "axis": 0, "mode": mode},
        reference=lambda: expected.numpy(),
    )


UNARY = [
    *[Case(kind, {"x": X}) for kind in ("abs", "ceil", "cos", "exp", "exp2", "floor", "round", "sigmoid", "sign")],
    *[Case(kind, {"x": X}) for kind in ("sin", "softplus", "square", "tanh", "relu", "relu6", "identity")],
    *[Case(kind, {"x": POSITIVE}) for kind in ("log", "rsqrt", "sqrt", "inverse")],
    Case("round", {"x": np.array([0.5, 1.5, -2.5], np.float32)}),
    Case("rsqrt", {"x": np.zeros(3, np.float32), "epsilon": 0.25}),
    Case("inverse", {"x": np.zeros(3, np.float32)}),
    Case("log", {"x": POSITIVE, "epsilon": 0.5}),
    Case("square", {"x": ints(-3, 4)}),
    Case("exp2", {"x": ints(0, 5)}),
    Case("clip", {"x": X, "alpha": np.float32(-0.5), "beta": np.float32(0.25)}),
    Case("threshold", {"x": X, "alpha": np.float32(0.25)}),
    Case("threshold", {"x": ints(-3, 4), "alpha": np.int32(1)}),
    Case("leaky_relu", {"x": X, "alpha": np.float32(0.1)}),
    Case("silu", {"x": X}, reference=torch_of(torch.nn.functional.silu, X)),
    Case("sigmoid", {"x": np.array([-200, 200], np.float32)}),
    Case("softplus", {"x": np.array([-60, 60], np.float32)}),
    Case("logical_not", {"x": flags(True, False)}),
]

BINARY = [
    *[Case(kind, {"x": X, "y": Y}) for kind in ("add", "sub", "mul", "real_div", "floor_div", "mod")],
    *[Case(kind, {"x": X, "y": Y}) for kind in ("maximum", "minimum", "greater", "less_equal")],
    *[Case(kind, {"x": ints(1, 2, 3), "y": ints(3, 2, 1)}) for kind in ("equal", "not_equal", "less", "greater_equal")],
    *[Case(kind, {"x": ints(7, -7, 7, -7), "y": ints(2, 2, -2, -2)}) for kind in ("floor_div", "mod", "real_div")],
    *[Case(kind, {"x": ints(1, -2, 3), "y": ints(3, 2, 1)}) for kind in ("add", "sub", "mul", "maximum")],
    Case("pow", {"x": POSITIVE, "y": Y}),
    *[
        Case(kind, {"x": flags(True, True, False, False), "y": flags(True, False, True, False)})
        for kind in ("logical_and", "logical_or", "logical_xor")
    ],
    Case("select", {"cond": X > 0, "a": X, "b": np.float32([2])}),
]

REDUCE = [
    *[
        Case(f"reduce_{kind}", {"x": POSITIVE, **options})
        for kind in ("sum", "mean", "max", "min", "prod", "l1_norm", "l2_norm", "log_sum", "log_sum_exp", "sum_square")
        for options in ({}, {"axes": ints(-1), "keep_dims": True}, {"axes": ints(0, 2)})
    ],
    Case("reduce_sum", {"x": ints(1, 2, 3)}),
    Case("reduce_argmax", {"x": X}),
    Case("reduce_argmax", {"x": X, "axis": 0, "keep_dims": True}),
    Case("reduce_argmin", {"x": X, "axis": 1}, opset="iOS15"),
    Case("cumsum", {"x": X}),
    Case("cumsum", {"x": X, "axis": 2, "reverse": True}),
    Case(
        "cumsum",
        {"x": X, "axis": 1, "exclusive": True},
        reference=lambda: (torch.from_numpy(X).cumsum(1) - torch.from_numpy(X)).numpy(),
    ),
    Case(
        "cumsum",
        {"x": X, "axis": 1, "exclusive": True, "reverse": True},
        reference=lambda: (torch.from_numpy(X).flip(1).cumsum(1).flip(1) - torch.from_numpy(X)).numpy(),
    ),
]

SHAPE = [
    Case("cast", {"x": X * 3, "dtype": "int32"}),
    Case("cast", {"x": X, "dtype": "fp16"}),
    Case("cast", {"x": ints(0, 3, -1), "dtype": "bool"}),
    Case("cast", {"x": ints(70000, -3), "dtype": "int16"}),
    Case("cast", {"x": ints(3, -1), "dtype": "fp32"}),
    Case("shape", {"x": X}),
    Case("reshape", {"x": X, "shape": ints(4, -1)}),
    Case("reshape", {"x": X, "shape": ints(0, 12, 1)}, opset="iOS15"),
    Case("reshape", {"x": X, "shape": ints(2, -1, 0)}),
    Case("reshape", {"x": X, "shape": ints(6, 0)}),
    Case("expand_dims", {"x": X, "axes": ints(0, -1)}),
    Case("squeeze", {"x": Y, "axes": ints(-1)}),
    Case("squeeze", {"x": X[:1, :, :1]}),
    Case("transpose", {"x": X, "perm": ints(2, 0, -2)}),
    Case("reverse", {"x": X, "axes": ints(1)}),
    Case("reverse", {"x": X}),
    Case("concat", {"values": (X, X + 1), "axis": 1}),
    Case("concat", {"values": (X, random(2, 3, 2)), "axis": -1}),
    Case(
        "concat",
        {"values": (X, X + 1), "axis": 1, "interleave": True},
        reference=lambda: torch.stack([torch.from_numpy(X), torch.from_numpy(X + 1)], 2).reshape(2, 6, 4).numpy(),
    ),
    Case("stack", {"values": (X, X + 1), "axis": 1}),
    Case("split", {"x": X, "num_splits": 2, "axis": 2}),
    Case("split", {"x": X, "split_sizes": ints(1, 3), "axis": -1}),
    Case("tile", {"x": X, "reps": ints(1, 2, 3)}),
    Case("pad", {"x": X, "pad": ints(0, 0, 1, 2), "constant_val": np.float32(7)}),
    Case("pad", {"x": X, "pad": ints(1, 2), "mode": "reflect"}),
    Case("pad", {"x": X, "pad": ints(1, 0, 2, 1), "mode": "replicate"}),
    Case("slice_by_index", {"x": X, "begin": ints(0, 1, -3), "end": ints(2, 3, -1)}),
    Case("slice_by_index", {"x": X, "begin": ints(0, 2, 3), "end": ints(2, 0, 0), "stride": ints(1, -1, -2)}),
    Case(
        "slice_by_index",
        {
            "x": X,
            "begin": ints(1, 1, -1),
            "end": ints(1, 2, 0),
            "begin_mask": flags(True, False, False),
            "end_mask": flags(True, True, False),
            "squeeze_mask": flags(False, False, True),
        },
    ),
    Case(
        "slice_update",
        {"x": X, "update": random(2, 3, 2), "begin": ints(0, 0, 1), "end": ints(0, 0, 3), "end_mask": flags(True, True, False)},
    ),
    Case("slice_by_size", {"x": X, "begin": ints(0, 1, -2), "size": ints(1, -1, 2)}),
    Case("band_part", {"x": ROWS, "lower": 1, "upper": 0}),
    Case("band_part", {"x": ROWS, "lower": -1, "upper": 2}),
    Case("fill", {"shape": ints(2, 3), "value": np.float32(1.5)}),
    Case("fill", {"shape": ints(2)}),
    Case("fill_like", {"ref_tensor": X, "value": np.int32(3)}),
    Case("range_1d", {"end": np.int32(9), "start": np.int32(2), "step": np.int32(3)}),
]

GATHER = [
    Case("gather", {"x": ROWS, "indices": ints(3, 0)}),
    Case("gather", {"x": ROWS, "indices": ints(3, -1), "axis": -1}, opset="iOS15"),
    Case("gather", {"x": ROWS, "indices": np.int32(2)}, opset="iOS16"),
    Case("gather", {"x": ROWS, "indices": np.array([[1, 2], [0, 4]], np.uint16)}, opset="iOS17"),
    Case("gather", {"x": X, "indices": np.array([[1], [2]], np.int32), "axis": 1, "batch_dims": 1}),
    Case("gather_along_axis", {"x": X, "indices": np.ones((2, 1, 4), np.int32), "axis": 1}),
    Case(
        "gather_nd",
        {"x": X, "indices": np.array([[1, 2], [0, 0]], np.int32)},
        reference=lambda: torch.from_numpy(X)[[1, 0], [2, 0]].numpy(),
    ),
    Case(
        "gather_nd",
        {"x": X, "indices": np.array([[2], [1]], np.int32), "batch_dims": 1},
        reference=lambda: torch.from_numpy(X)[[0, 1], [2, 1]].numpy(),
    ),
    scattered("add", "sum"),
    scattered("mul", "prod"),
    scattered("max", "amax"),
    scattered("min", "amin"),
    Case(
        "scatter",
        {"data": X, "indices": ints(2, 0), "updates": random(2, 2, 4), "axis": 1, "mode": "update"},
        reference=lambda: torch.from_numpy(X)
        .index_copy(1, torch.tensor([2, 0]), torch.from_numpy(random(2, 2, 4)))
        .numpy(),
    ),
    Case(
        "scatter",
        {"data": ROWS, "indices": ints(1, 1), "updates": random(2, 4)},
        opset="iOS15",
        reference=lambda: torch.from_numpy(ROWS)
        .index_add(0, torch.tensor([1, 1]), torch.from_numpy(random(2, 4)))
        .numpy(),
    ),
    Case(
        "scatter_along_axis",
        {
            "data": X,
            "indices": np.array([[[2, 1, 0, 2]]] * 2, np.int32),
            "updates": random(2, 1, 4),
            "axis": 1,
            "mode": "update",
        },
    ),
    Case(
        "scatter_nd",
        {"data": X, "indices": np.array([[1, 2], [0, 0]], np.int32), "updates": random(2, 4), "mode": "add"},
        reference=lambda: torch.from_numpy(X)
        .index_put((torch.tensor([1, 0]), torch.tensor([2, 0])), torch.from_numpy(random(2, 4)), accumulate=True)
        .numpy(),
    ),
]

LINEAR = [
    Case("linear", {"x": X, "weight": ROWS, "bias": random(5)}),
    Case("linear", {"x": random(4), "weight": ROWS}),
    Case("matmul", {"x": X, "y": random(2, 4, 5)}),
    Case("matmul", {"x": X, "y": random(5, 4), "transpose_y": True}),
    Case("matmul", {"x": X, "y": random(2, 3, 2), "transpose_x": True}),
    Case("matmul", {"x": random(3), "y": random(3, 2)}),
    Case("matmul", {"x": np.arange(6, dtype=np.int32).reshape(2, 3), "y": np.ones((3, 2), np.int32)}),
    Case("einsum", {"values": (random(2, 3, 4, 5), random(2, 5, 4, 6)), "equation": "nchw,nwhu->nchu"}),
    Case("einsum", {"values": (random(3, 4, 5), random(5, 1, 6)), "equation": "chw,whr->chr"}),
    convolved(random(2, 4, 7), random(6, 4, 3), random(6)),
    convolved(IMAGE, random(3, 4, 1, 1)),
    convolved(IMAGE, random(6, 2, 3, 2), random(6), stride=[2, 1], padding=[1, 2], dilation=[2, 1], groups=2),
    convolved(random(1, 2, 4, 5, 3), random(2, 2, 2, 2, 2)),
    same_padded("same", 1, 2),
    same_padded("same_lower", 2, 1),
]

NORM = [
    Case("layer_norm", {"x": X, "axes": ints(-1), "gamma": random(4), "beta": random(4), "epsilon": np.float32(0.1)}),
    Case("layer_norm", {"x": X, "axes": ints(0, 2), "gamma": random(2, 4)}),
    Case("layer_norm", {"x": X, "axes": ints(0, 1, 2)}),
    Case("l2_norm", {"x": X}),
    Case("l2_norm", {"x": IMAGE, "epsilon": np.float32(0.5)}),
    Case("softmax", {"x": X}),
    Case("softmax", {"x": X, "axis": 0}),
    Case(
        "instance_norm",
        {"x": IMAGE, "gamma": random(4), "beta": random(4)[::-1].copy()},
        reference=lambda: torch.nn.functional.instance_norm(
            torch.from_numpy(IMAGE),
            weight=torch.from_numpy(random(4)),
            bias=torch.from_numpy(random(4)[::-1].copy()),
        ).numpy(),
    ),
    Case(
        "batch_norm",
        {"x": IMAGE, "mean": random(4), "variance": np.abs(random(4)), "gamma": random(4), "epsilon": np.float32(0.1)},
        reference=lambda: torch.nn.functional.batch_norm(
            torch.from_numpy(IMAGE),
            torch.from_numpy(random(4)),
            torch.from_numpy(np.abs(random(4))),
            weight=torch.from_numpy(random(4)),
            eps=0.1,
        ).numpy(),
    ),
]

CASES = [*UNARY, *BINARY, *REDUCE, *SHAPE, *GATHER, *LINEAR, *NORM]
NAMES = [f"{index}-{case.kind}" for index, case in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_agrees_in_single_precision(case: Case, tmp_path: Path) -> None:
    folded, declared = build(case, case.arguments)
    expected = folded if case.reference is None else [case.reference()]
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
    return value.astype(np.float32) if isinstance(value, np.ndarray | np.float16) and value.dtype == np.float16 else value


HALVES = [case for case in CASES if case.reference is None and "epsilon" not in case.arguments]


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
