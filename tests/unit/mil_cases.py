"""The operations of the interpreter with arguments: what test_mil_ops.py compares with coremltools or torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """An operation with arguments; `reference` is the result where coremltools folds no constants."""

    kind: str
    arguments: Arguments
    opset: str = "iOS18"
    reference: torch.Tensor | None = None


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
        reference=convolve(torch.from_numpy(x), torch.from_numpy(weight), *given, **options),
    )


def same_padded(pad_type: str, left: int, right: int) -> Case:
    """Stride 2 over 6 positions with a kernel of 4: three positions, and an even padding need."""
    x, weight = random(1, 2, 7), random(3, 2, 4)
    padded = torch.nn.functional.pad(torch.from_numpy(x), (left, right))
    return Case(
        "conv",
        {"x": x, "weight": weight, "strides": ints(2), "pad_type": pad_type},
        reference=torch.conv1d(padded, torch.from_numpy(weight), stride=2),
    )


def scattered(mode: str, reduce: str) -> Case:
    """Index 2 is hit twice."""
    indices, updates = ints(2, 0, 2), random(3, 4)
    places = torch.from_numpy(indices).long()[:, None].expand(3, 4)
    expected = torch.from_numpy(ROWS).scatter_reduce(0, places, torch.from_numpy(updates), reduce)
    return Case(
        "scatter",
        {"data": ROWS, "indices": indices, "updates": updates, "axis": 0, "mode": mode},
        reference=expected,
    )


UNARY = [
    *[Case(kind, {"x": X}) for kind in ("abs", "ceil", "cos", "exp", "exp2", "floor", "round", "sigmoid", "sign")],
    *[Case(kind, {"x": X}) for kind in ("sin", "softplus", "square", "tanh", "relu", "relu6", "identity")],
    *[Case(kind, {"x": POSITIVE}) for kind in ("log", "rsqrt", "sqrt", "inverse")],
    Case("round", {"x": np.array([0.5, 1.5, -2.5], np.float32)}),
    Case("rsqrt", {"x": np.zeros(3, np.float32), "epsilon": 0.25}),
    Case("inverse", {"x": np.zeros(3, np.float32)}),
    Case("log", {"x": POSITIVE, "epsilon": 0.5}),
    Case("log", {"x": np.zeros(2, np.float32)}),
    Case("square", {"x": ints(-3, 4)}),
    Case("exp2", {"x": ints(0, 5)}),
    Case("clip", {"x": X, "alpha": np.float32(-0.5), "beta": np.float32(0.25)}),
    Case("threshold", {"x": X, "alpha": np.float32(0.25)}),
    Case("threshold", {"x": ints(-3, 4), "alpha": np.int32(1)}),
    Case("leaky_relu", {"x": X, "alpha": np.float32(0.1)}),
    Case("silu", {"x": X}, reference=torch.nn.functional.silu(torch.from_numpy(X))),
    Case("sigmoid", {"x": np.array([-80, 80], np.float32)}),
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
        reference=(torch.from_numpy(X).cumsum(1) - torch.from_numpy(X)),
    ),
    Case(
        "cumsum",
        {"x": X, "axis": 1, "exclusive": True, "reverse": True},
        reference=(torch.from_numpy(X).flip(1).cumsum(1).flip(1) - torch.from_numpy(X)),
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
        reference=torch.stack([torch.from_numpy(X), torch.from_numpy(X + 1)], 2).reshape(2, 6, 4),
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
        {
            "x": X,
            "update": random(2, 3, 2),
            "begin": ints(0, 0, 1),
            "end": ints(0, 0, 3),
            "end_mask": flags(True, True, False),
        },
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
        reference=torch.from_numpy(X)[[1, 0], [2, 0]],
    ),
    Case(
        "gather_nd",
        {"x": X, "indices": np.array([[2], [1]], np.int32), "batch_dims": 1},
        reference=torch.from_numpy(X)[[0, 1], [2, 1]],
    ),
    scattered("add", "sum"),
    scattered("mul", "prod"),
    scattered("max", "amax"),
    scattered("min", "amin"),
    Case(
        "scatter",
        {"data": X, "indices": ints(2, 0), "updates": random(2, 2, 4), "axis": 1, "mode": "update"},
        reference=(torch.from_numpy(X).index_copy(1, torch.tensor([2, 0]), torch.from_numpy(random(2, 2, 4)))),
    ),
    Case(
        "scatter",
        {"data": ROWS, "indices": ints(1, 1), "updates": random(2, 4)},
        opset="iOS15",
        reference=(torch.from_numpy(ROWS).index_add(0, torch.tensor([1, 1]), torch.from_numpy(random(2, 4)))),
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
        reference=(
            torch.from_numpy(X).index_put(
                (torch.tensor([1, 0]), torch.tensor([2, 0])), torch.from_numpy(random(2, 4)), accumulate=True
            )
        ),
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
    Case("l2_norm", {"x": X * np.float32(1e-3)}),
    Case("l2_norm", {"x": IMAGE, "epsilon": np.float32(0.5)}),
    Case("softmax", {"x": X}),
    Case("softmax", {"x": X, "axis": 0}),
    Case(
        "instance_norm",
        {"x": IMAGE, "gamma": random(4), "beta": random(4)[::-1].copy()},
        reference=torch.nn.functional.instance_norm(
            torch.from_numpy(IMAGE),
            weight=torch.from_numpy(random(4)),
            bias=torch.from_numpy(random(4)[::-1].copy()),
        ),
    ),
    Case(
        "batch_norm",
        {"x": IMAGE, "mean": random(4), "variance": np.abs(random(4)), "gamma": random(4), "epsilon": np.float32(0.1)},
        reference=torch.nn.functional.batch_norm(
            torch.from_numpy(IMAGE),
            torch.from_numpy(random(4)),
            torch.from_numpy(np.abs(random(4))),
            weight=torch.from_numpy(random(4)),
            eps=0.1,
        ),
    ),
]

HALVES = (np.arange(-9, 15) / 2).reshape(2, 3, 4).astype(np.float32)
ONE, TWO = np.float32(1.0), np.array([0.5, 1.0, 2.0], np.float32)
QUANTISE = [
    Case("quantize", {"input": HALVES, "scale": ONE, "output_dtype": "int8"}),
    Case("quantize", {"input": HALVES, "scale": np.float32(0.03), "zero_point": np.int8(-90), "output_dtype": "int8"}),
    Case("quantize", {"input": HALVES, "scale": ONE, "zero_point": np.uint8(4), "output_dtype": "uint8"}),
    Case("quantize", {"input": HALVES, "scale": TWO, "axis": np.int32(1), "output_dtype": "int8"}),
    Case(
        "dequantize",
        {"input": HALVES.astype(np.int8), "scale": np.float32(0.5), "zero_point": np.int8(-3)},
        reference=(torch.from_numpy(HALVES.astype(np.int8)).float() + 3) / 2,
    ),
    Case(
        "dequantize",
        {"input": np.abs(HALVES).astype(np.uint8), "scale": TWO, "axis": np.int32(-2)},
        reference=torch.from_numpy(np.abs(HALVES).astype(np.uint8)).float() * torch.from_numpy(TWO)[:, None],
    ),
]

CASES = [*UNARY, *BINARY, *REDUCE, *SHAPE, *GATHER, *LINEAR, *NORM, *QUANTISE]
