"""Counts what delegates took of a lowered program: operators, multiply-accumulates, bytes; it changes nothing."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from runtimes.manifest import Coverage

PLUMBING = ("getitem", "executorch_call_delegate", "alloc")
PRODUCTS = ("linear", "mm", "bmm", "matmul", "addmm", "convolution")

REASONS = {
    r"embedding|index_select|gather": "rows are looked up in a table, which the delegate has no operator for",
    r"quantize_per_(tensor|channel)": "what goes into the program and comes out is float32, and the delegate's is not",
    r"_to_dim_order_copy|_to_copy": "types change between the program and its tables or delegate",
}
"""Patterns of operators, and why they stay outside."""


@dataclass
class Tally:
    """What was met on one side of the border."""

    operators: Counter[str] = field(default_factory=Counter)
    macs: int = 0
    weights: dict[str, int] = field(default_factory=dict)


def coverage(program: Any) -> Coverage:
    """Of one method, the ExportedProgram of an edge program after lowering.

    A constant counts once on the side that reads it, even where several operators do. Weights of an operator that the
    compiler replaced count as the operator that stands in the graph that the delegate was given.
    """
    inside, outside = Tally(), Tally()
    delegates: Counter[str] = Counter()
    _count(program, outside)
    for lowered in _delegated(program):
        delegates[lowered.backend_id] += 1
        _count(lowered.original_module, inside)
    return Coverage(
        delegates=dict(delegates),
        inside=dict(sorted(inside.operators.items())),
        outside=dict(sorted(outside.operators.items())),
        macs_inside=inside.macs,
        macs_outside=outside.macs,
        weights_inside=sum(inside.weights.values()),
        weights_outside=sum(outside.weights.values()),
        why={name: reason for name in sorted(outside.operators) if (reason := _why(name)) and delegates},
    )


def _why(operator: str) -> str | None:
    """Why delegates leave an operator outside, where its name tells."""
    return next((reason for pattern, reason in REASONS.items() if re.search(pattern, operator)), None)


def _delegated(program: Any) -> Iterator[Any]:
    """The lowered module of each delegate call, in the order of the calls."""
    for node in program.graph_module.graph.nodes:
        if node.op == "call_function" and _name(node) == "executorch_call_delegate":
            yield getattr(program.graph_module, str(node.args[0].target))


def _count(program: Any, tally: Tally) -> None:
    """Add one graph's operators, and the constants that one of them reads."""
    constants = _constants(program)
    for node in program.graph_module.graph.nodes:
        if node.op != "call_function" or _name(node) in PLUMBING:
            continue
        tally.operators[_name(node)] += 1
        tally.macs += _macs(node)
        for given in node.all_input_nodes:
            if given.name in constants:
                tally.weights[given.name] = constants[given.name] // _values_in_a_byte(node, given)


def _name(node: Node) -> str:
    """ "aten.linear" of an operator of any dialect and overload."""
    name = str(getattr(node.target, "__name__", node.target))
    parts = [part for part in name.replace("::", ".").split(".") if part not in ("edge", "default")]
    return ".".join(parts)


def _macs(node: Node) -> int:
    """Multiply-accumulates of a product or convolution: elements of the result times the length of each sum."""
    operator = _name(node).removeprefix("aten.")
    if operator not in PRODUCTS:
        return 0
    first = _shape(node.args[1] if operator == "addmm" else node.args[0])
    length = math.prod(_shape(node.args[1])[1:]) if operator == "convolution" else first[-1]
    return math.prod(_shape(node)) * length


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _values_in_a_byte(node: Node, weight: Node) -> int:
    """2 where a weight of 4 bits is dequantised, which the graph holds in bytes and the program in halves of them."""
    if not _name(node).endswith("dequantize_affine") or weight is not node.args[0]:
        return 1
    least, largest = (int(str(limit)) for limit in node.args[5:7])
    return 2 if largest - least < 16 else 1


def _constants(program: Any) -> dict[str, int]:
    """Size of each parameter, buffer and constant of a graph, by the name of its placeholder."""
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    held = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    return {node.name: int(node.meta["val"].numel() * node.meta["val"].element_size()) for node in held}
