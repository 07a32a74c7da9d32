"""Gives an ONNX graph its weights lazily, halves their storage, shares one data file; changes no arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from exporter import streaming
from exporter.models.parameters import value
from exporter.progress import Progress
from exporter.streaming import Piece

SMALL = 1024  # bytes; smaller tensors stay inside the .onnx file
LARGE = 1 << 20  # bytes; larger tensors start on a page, so that a runtime can map them
PAGE = 4096  # bytes
LINE = 64  # bytes; the others start on a cache line, whatever odd lengths come before them
TAKE_MATRICES = ("Gemm", "MatMul", "Gather")


def attach(model: ir.Model, parameters: Mapping[str, nn.Parameter]) -> None:
    """Let every initializer named like a parameter read its value from the checkpoint when it is written."""
    for name, initializer in model.graph.initializers.items():
        if name in parameters:
            initializer.const_value = _lazy(name, parameters[name])


def _lazy(name: str, made: nn.Parameter) -> ir.LazyTensor:
    def read() -> ir.Tensor[Any]:
        return ir.Tensor(value(made).numpy(), name=name)

    dtype = ir.DataType.FLOAT16 if made.dtype == torch.float16 else ir.DataType.FLOAT
    return ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(made.shape), name=name)


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
    large = list(_large(model))
    pieces = _place(large)
    streaming.write(path.with_name(data), pieces, progress)
    for (initializer, tensor), piece in zip(large, pieces, strict=True):
        initializer.const_value = _external(tensor, piece, path.with_name(data))
    _read_rest(model)
    onnx.save(ir.to_proto(model), path)
    values = {name: initializer.const_value for name, initializer in model.graph.initializers.items()}
    return {name: tensor for name, tensor in values.items() if isinstance(tensor, ir.ExternalTensor)}


def _large(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for graph in model.graphs():
        for initializer in graph.initializers.values():
            tensor = initializer.const_value
            if tensor is not None and tensor.nbytes > SMALL:
                yield initializer, tensor


def _place(tensors: Iterable[tuple[ir.Value, ir.TensorProtocol]]) -> list[Piece]:
    """Where each tensor will lie in the data file."""
    pieces, end = [], 0
    for initializer, tensor in tensors:
        step = PAGE if tensor.nbytes > LARGE else LINE
        start = -(-end // step) * step
        pieces.append(Piece(str(initializer.name), start, tensor.nbytes, partial(_content, tensor)))
        end = pieces[-1].end
    return pieces


def _content(tensor: ir.TensorProtocol) -> memoryview:
    """The bytes of a tensor as ONNX stores them."""
    if tensor.dtype.bitwidth < 8:
        return memoryview(tensor.tobytes())  # packed
    array: Any = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)
    return memoryview(array)


def _external(tensor: ir.TensorProtocol, piece: Piece, data: Path) -> ir.ExternalTensor:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor(
        data.name, piece.offset, piece.length, tensor.dtype, shape=shape, name=piece.name, base_dir=data.parent
    )


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
