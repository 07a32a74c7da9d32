"""Products of an ONNX graph as WebGPU's kernels do them best: matrices (K, N), and float16 summed in short pieces."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from exporter.passes.onnx_balance import weights

PIECE = 128
"""Products summed in float16, one addend after another, are off by the square root of their number."""


def by_columns(model: ir.Model) -> None:
    """Write `Gemm` with a matrix (N, K) as `MatMul` with (K, N), in place; a bias is then added.

    A float16 matrix of several times PIECE inputs becomes (pieces, PIECE, N): as many products, summed in float32. The
    matrices are still read when they are written, and transposed one by one.
    """
    for node in list(model.graph):
        matrix = node.inputs[1] if node.op_type == "Gemm" else None
        if matrix is None or not node.attributes.get_int("transB", 0) or not _is_parameter(matrix):
            continue
        x, _, *bias = node.inputs
        n, k = (int(size) for size in weights(matrix).shape.numpy())
        if weights(matrix).dtype == ir.DataType.FLOAT16 and k > PIECE and k % PIECE == 0:
            made = _in_pieces(model.graph, x, _turned(model.graph, matrix, (k // PIECE, PIECE, n)))
        else:
            made = [ir.node("MatMul", [x, _turned(model.graph, matrix, (k, n))])]
        if bias:
            made.append(ir.node("Add", [made[0].outputs[0], bias[0]]))
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], made, node.outputs, made[-1].outputs)
        if not matrix.uses():
            del model.graph.initializers[str(matrix.name)]


def _is_parameter(value: ir.Value) -> bool:
    return isinstance(value.const_value, ir.LazyTensor)


def _in_pieces(graph: ir.Graph, x: ir.Value | None, matrix: ir.Value) -> list[ir.Node]:
    """x (T, K), of known T, times matrix (pieces, PIECE, N) -> (T, N)."""
    tokens = int(cast(ir.Shape, cast(ir.Value, x).shape).numpy()[0])
    pieces = weights(matrix).shape[0]
    shape = [tokens, pieces, PIECE] if tokens > 1 else [pieces, 1, PIECE]
    split = [ir.node("Reshape", [x, _constant(graph, f"apart.{tokens}.{pieces}", shape)])]
    if tokens > 1:
        split.append(ir.node("Transpose", split[0].outputs, {"perm": [1, 0, 2]}))
    product = ir.node("MatMul", [split[-1].outputs[0], matrix])
    wide = ir.node("Cast", product.outputs, {"to": ir.DataType.FLOAT})
    total = ir.node("ReduceSum", [wide.outputs[0], _constant(graph, "axis.0", [0])], {"keepdims": 0})
    return [*split, product, wide, total, ir.node("Cast", total.outputs, {"to": ir.DataType.FLOAT16})]


def _constant(graph: ir.Graph, name: str, values: list[Any]) -> ir.Value:
    if name not in graph.initializers:
        held = ir.Tensor(np.array(values, np.int64), name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=held.shape, type=ir.TensorType(held.dtype), const_value=held)
        )
    return graph.initializers[name]


def _turned(graph: ir.Graph, matrix: ir.Value, sizes: tuple[int, ...]) -> ir.Value:
    """The initializer that holds the matrix transposed, in this shape."""
    name, source = f"{matrix.name}.columns", weights(matrix)
    if name not in graph.initializers:
        read, shape = partial(_transposed, source, name, sizes), ir.Shape(sizes)
        tensor = ir.LazyTensor(read, dtype=source.dtype, shape=shape, name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=shape, type=ir.TensorType(source.dtype), const_value=tensor)
        )
    return graph.initializers[name]


def _transposed(source: ir.TensorProtocol, name: str, sizes: tuple[int, ...]) -> ir.Tensor[Any]:
    return ir.Tensor(np.ascontiguousarray(source.numpy().T).reshape(sizes), name=name)
