"""Gives an ONNX graph its weights lazily, halves their storage, shares one data file; changes no arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir import external_data
from torch import nn

from exporter.models.parameters import value
from exporter.progress import Progress

SMALL = 1024  # bytes; smaller tensors stay inside the .onnx file
PAGE = 4096  # bytes; large tensors start on a page, so that a runtime can map them
TAKE_MATRICES = ("Gemm", "MatMul", "Gather")


def attach(model: ir.Model, parameters: Mapping[str, nn.Parameter]) -> None:
    """Let every initializer named like a parameter read its value from the checkpoint when it is written."""
    for name, initializer in model.graph.initializers.items():
        if name in parameters:
            initializer.const_value = _lazy(name, parameters[name])


def _lazy(name: str, made: nn.Parameter) -> ir.LazyTensor:
    def read() -> ir.Tensor[Any]:
        return ir.Tensor(value(made).numpy(), name=name)

    return ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(made.shape), name=name)


def halve(model: ir.Model) -> None:
    """Store matrices as float16 with a Cast back where they are used; vectors stay float32.

    An embedding is cast after its rows are gathered, so that the whole table never exists in float32.
    """
    for initializer in list(model.graph.initializers.values()):
        tensor, uses = initializer.const_value, list(initializer.uses())
        if (
            tensor is None
            or tensor.dtype != ir.DataType.FLOAT
            or any(u.node.op_type not in TAKE_MATRICES for u in uses)
        ):
            continue
        if len(tensor.shape) != 2:
            continue
        for node, index in uses:
            _cast_use(model, node, index, initializer)
        initializer.const_value = _as_half(tensor)
        initializer.dtype = ir.DataType.FLOAT16


def _cast_use(model: ir.Model, node: ir.Node, index: int, initializer: ir.Value) -> None:
    if node.op_type == "Gather":
        (rows,) = node.outputs
        cast = ir.node("Cast", [rows], {"to": ir.DataType.FLOAT})
        ir.convenience.replace_all_uses_with(rows, cast.outputs[0])
        cast.replace_input_with(0, rows)
        cast.outputs[0].shape, cast.outputs[0].dtype = rows.shape, ir.DataType.FLOAT
        rows.dtype = ir.DataType.FLOAT16
        model.graph.insert_after(node, cast)
    else:
        cast = ir.node("Cast", [initializer], {"to": ir.DataType.FLOAT})
        cast.outputs[0].shape, cast.outputs[0].dtype = initializer.shape, ir.DataType.FLOAT
        node.replace_input_with(index, cast.outputs[0])
        model.graph.insert_before(node, cast)


def _as_half(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    def read() -> ir.Tensor[Any]:
        return ir.Tensor(tensor.numpy().astype(np.float16), name=tensor.name)

    return ir.LazyTensor(read, dtype=ir.DataType.FLOAT16, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)


def save_with_data(model: ir.Model, path: Path, data: str, progress: Progress) -> dict[str, ir.ExternalTensor]:
    """Write `model` to `path` and its weights, one by one, to the file `data` beside it; returns where they lie."""
    total = sum(i.const_value.nbytes for i in model.graph.initializers.values() if i.const_value is not None)
    with progress(f"writing {data}", total) as advance:

        def wrote(tensor: ir.TensorProtocol, _: object) -> None:
            advance(tensor.nbytes)

        external_data.unload_from_model(
            model, path.parent, data, size_threshold_bytes=SMALL, callback=wrote, alignment=PAGE
        )
    _read_rest(model)
    onnx.save(ir.to_proto(model), path)
    values = {name: initializer.const_value for name, initializer in model.graph.initializers.items()}
    return {name: tensor for name, tensor in values.items() if isinstance(tensor, ir.ExternalTensor)}


def save_sharing(model: ir.Model, path: Path, weights: Mapping[str, ir.ExternalTensor]) -> None:
    """Write a second graph to `path`, its weights those that `save_with_data` wrote for the first."""
    for name, initializer in model.graph.initializers.items():
        if name in weights:
            initializer.const_value = weights[name]
    _read_rest(model)
    onnx.save(ir.to_proto(model), path)


def _read_rest(model: ir.Model) -> None:
    """Read what stays inside the .onnx file: onnx_ir would wrap what the checkpoint raises in exceptions of its own."""
    for name, initializer in model.graph.initializers.items():
        if isinstance(initializer.const_value, ir.LazyTensor):
            initializer.const_value = ir.Tensor(initializer.const_value.numpy(), name=name)
