"""Writes activations so that Qualcomm's Hexagon compiler keeps them apart from products; the maths stays the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir


def keep_activations_apart(model: ir.Model) -> None:
    """Rewrite every tanh as -tanh(-x), and every sigmoid through tanh, in place; name every node.

    In float16 the compiler fuses an activation into the product before it, and is then off as if it had eight bits:
    of RWKV-7, 2 x 128, a logit was off by 2.4e-2 that way, and apart by 4.3e-3.
    """
    half = ir.Value(name="half", const_value=ir.Tensor(np.float32(0.5), name="half"))
    if any(node.op_type == "Sigmoid" for node in model.graph):
        model.graph.initializers["half"] = half
    for node in list(model.graph):
        if node.op_type in ("Tanh", "Sigmoid"):
            (x,), (y,) = node.inputs, node.outputs
            made = list(_tanh(x) if node.op_type == "Tanh" else _sigmoid(x, half))
            for each in made:
                each.outputs[0].shape, each.outputs[0].type = y.shape, y.type
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], made, [y], [made[-1].outputs[0]])
    for index, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{index}"


def _tanh(x: ir.Value | None) -> Iterator[ir.Node]:
    yield (negative := ir.node("Neg", [x]))
    yield (tanh := ir.node("Tanh", negative.outputs))
    yield ir.node("Neg", tanh.outputs)


def _sigmoid(x: ir.Value | None, half: ir.Value) -> Iterator[ir.Node]:
    yield (halved := ir.node("Mul", [x, half]))
    yield (tanh := ir.node("Tanh", halved.outputs))
    yield (scaled := ir.node("Mul", [*tanh.outputs, half]))
    yield ir.node("Add", [*scaled.outputs, half])
