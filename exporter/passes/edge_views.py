"""Writes an edge graph's changes of shape as views and slices, which delegates take; it moves no number."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult


def views(module: GraphModule) -> PassResult:
    """In place: a new or dropped axis becomes a view, one entry of an axis a slice and a view; of views in a row
    the last stays, and nothing that gives the shape there is already.

    Every batched product is traced with two such expansions, and with views around it.
    """
    from executorch.exir.dialects._ops import ops

    aten = ops.edge.aten
    view, slicing = aten.view_copy.default, aten.slice_copy.Tensor
    for node in list(module.graph.nodes):
        if node.target in (aten.unsqueeze_copy.default, aten.squeeze_copy.dim, aten.squeeze_copy.dims):
            node.replace_all_uses_with(_made(node, view, node.args[0], _shape(node)))
        elif node.target == aten.select_copy.int:
            whole, axis, at = node.args
            at %= _shape(whole)[axis]
            one = _made(node, slicing, whole, axis, at, at + 1)
            node.replace_all_uses_with(_made(node, view, one, _shape(node)))
    for node in list(module.graph.nodes):
        if node.target == view and node.args[0].target == view:
            node.replace_input_with(node.args[0], node.args[0].args[0])
        if node.target in (view, slicing, aten.expand_copy.default) and _shape(node) == _shape(node.args[0]):
            node.replace_all_uses_with(node.args[0])
    module.graph.eliminate_dead_code()
    module.recompile()
    return PassResult(module, True)


def _shape(node: Any) -> list[int]:
    return list(node.meta["val"].shape)


def _made(before: Node, target: Any, given: Node, *args: Any) -> Node:
    """A new operator right before a node, with what is noted about that one."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, (given, *args))
    node.meta = dict(before.meta) | {"val": target(given.meta["val"], *args)}
    return node
