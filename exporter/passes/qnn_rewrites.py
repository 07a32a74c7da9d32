"""Writes what QNN's Hexagon compiler gets wrong or refuses in other words; every rewrite is the same function."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node, subgraph_rewriter

aten = torch.ops.aten


def keep_activations_apart(module: GraphModule) -> GraphModule:
    """Rewrite every tanh as -tanh(-x), and sigmoid and silu through tanh, in place.

    In float16, the Hexagon compiler fuses an activation into the linear before it, and is then off by 3.7e-3 (sigmoid)
    and 7.3e-3 (tanh), as if it had eight bits; apart from it by 6e-4 and 3e-4. A sigmoid by way of tanh: 4e-4.
    """
    for operator, apart in ((aten.tanh.default, _tanh), (aten.silu.default, _silu), (aten.sigmoid.default, _sigmoid)):
        subgraph_rewriter.replace_pattern(module, _single(operator), apart)
    return module


def outer_products_as_matmuls(module: GraphModule) -> GraphModule:
    """Rewrite every a * b of (..., A, 1) and (..., 1, B) as a matmul, in place: in 16 bits QNN refuses the former."""
    for node in module.graph.find_nodes(op="call_function", target=aten.mul.Tensor):
        for column, row in (node.args, node.args[::-1]):
            if _is_outer(column, row):
                node.target, node.args = aten.matmul.default, (column, row)
                break
    module.recompile()
    return module


def _is_outer(column: Any, row: Any) -> bool:
    if not (isinstance(column, Node) and isinstance(row, Node)):
        return False
    first, second = column.meta["val"].shape, row.meta["val"].shape
    return len(first) == len(second) > 1 and first[-1] == second[-2] == 1 < min(first[-2], second[-1])


def _single(operator: Any) -> Any:
    def pattern(x: Any) -> Any:
        return operator(x)

    return pattern


def _tanh(x: Any) -> Any:
    return aten.neg.default(aten.tanh.default(aten.neg.default(x)))


def _sigmoid(x: Any) -> Any:
    half = aten.mul.Tensor(aten.tanh.default(aten.mul.Tensor(x, 0.5)), 0.5)
    return aten.add.Tensor(half, 0.5)


def _silu(x: Any) -> Any:
    return aten.mul.Tensor(x, aten.sigmoid.default(x))
