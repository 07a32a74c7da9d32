"""Evens out the channels of squared ReLUs between the two matrices around them, before these are rounded.

How loud they are is read from the weights alone, see squared_relu.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, cast

import onnx_ir as ir

from exporter.passes.squared_relu import factors
from runtimes.contract import Array


def balance(model: ir.Model) -> dict[str, Callable[[], Array]]:
    """Scale the matrices around every squared ReLU, in place; weights are still read only when they are written.

    By the name of every V, what its inputs are divided by, (F,).
    """
    quieted: dict[str, Callable[[], Array]] = {}
    for key, value in _feed_forwards(model.graph):
        factors = cache(partial(_factors, weights(key), weights(value)))
        key.const_value = _lazy(weights(key), partial(_quieter, factors=factors))
        value.const_value = _lazy(weights(value), partial(_louder, factors=factors))
        quieted[str(value.name)] = partial(_squared, factors)
    return quieted


def weights(initializer: ir.Value) -> ir.TensorProtocol:
    """What an initializer holds."""
    return cast(ir.TensorProtocol, initializer.const_value)  # None only for values that are no initializers


def _feed_forwards(graph: ir.Graph) -> Iterator[tuple[ir.Value, ir.Value]]:
    """K (F, C) and V (C, F) of x @ K.T -> Relu -> square -> optional product with others -> @ V.T."""
    for relu in graph:
        square = _only_use(relu.outputs[0]) if relu.op_type == "Relu" else None
        if square is None or square.op_type != "Mul" or square.inputs[0] is not square.inputs[1]:
            continue
        after = _only_use(square.outputs[0])
        if after is not None and after.op_type == "Mul":  # 7a's deep embedding
            after = _only_use(after.outputs[0])
        before = cast(ir.Value, relu.inputs[0])
        key, value = _matrix(before.producer()), _matrix(after)
        if key is not None and value is not None and _only_use(before) is relu:
            yield key, value


def _only_use(value: ir.Value) -> ir.Node | None:
    """The one node that takes the value."""
    nodes = {node for node, _ in value.uses()}
    return nodes.pop() if len(nodes) == 1 and not value.is_graph_output() else None


def _matrix(node: ir.Node | None) -> ir.Value | None:
    """The transposed parameter that only this product without a bias takes."""
    if node is None or node.op_type != "Gemm" or not node.attributes.get_int("transB", 0) or len(node.inputs) > 2:
        return None
    matrix = cast(ir.Value, node.inputs[1])
    return matrix if isinstance(matrix.const_value, ir.LazyTensor) and _only_use(matrix) is node else None


def _factors(key: ir.TensorProtocol, value: ir.TensorProtocol) -> Array:
    return factors(key.numpy(), value.numpy())


def _quieter(key: Array, factors: Callable[[], Array]) -> Array:
    quieter: Array = key / factors()[:, None]
    return quieter


def _louder(value: Array, factors: Callable[[], Array]) -> Array:
    louder: Array = value * _squared(factors)
    return louder


def _squared(factors: Callable[[], Array]) -> Array:
    squared: Array = factors() ** 2
    return squared


def _lazy(source: ir.TensorProtocol, change: Callable[[Array], Array]) -> ir.LazyTensor:
    def read() -> ir.Tensor[Any]:
        return ir.Tensor(change(source.numpy()), name=source.name)

    return ir.LazyTensor(read, dtype=source.dtype, shape=ir.Shape(source.shape.numpy()), name=source.name)
