"""Computes beforehand what a traced program makes of nothing, such as masks; it touches no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

CHECK = torch.ops.aten._assert_tensor_metadata.default  # traced with a conversion; it would keep what is converted
LIKE = (torch.ops.aten.ones_like.default,)  # of its argument it sees nothing but the shape


def folded(programs: Mapping[str, ExportedProgram]) -> dict[str, ExportedProgram]:
    """The programs, changed in place, with a constant for whatever depends on no input and on no weight.

    Delegates know neither the integers nor the comparisons that masks are made with. Arithmetic on weights is left
    alone: its result may be larger than they are, and quantised weights would be stored as the numbers they stand for.
    """
    for program in programs.values():
        _replace(program, constants(program))
    return dict(programs)


def constants(program: ExportedProgram) -> dict[Node, Tensor]:
    """The value of every operation that depends on no input and on no weight; checks of types are taken out."""
    for node in program.graph.find_nodes(op="call_function", target=CHECK):
        program.graph.erase_node(node)
    known: dict[Node, Tensor] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and (value := _value(node, known)) is not None:
            known[node] = value
    return known


def _value(node: Node, known: Mapping[Node, Tensor]) -> Tensor | None:
    if node.target in LIKE:
        like = node.meta["val"]
        return torch.ones(like.shape, dtype=like.dtype)
    if node.is_impure() or not all(given in known for given in node.all_input_nodes):
        return None
    target: Any = node.target
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda given: known[given])
    made = target(*args, **kwargs)
    return made.contiguous() if isinstance(made, Tensor) else None


def _replace(program: ExportedProgram, known: Mapping[Node, Tensor]) -> None:
    from executorch.exir.passes.constant_prop_pass import create_constant_nodes_and_return_specs

    signature = program.graph_signature
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    specs |= create_constant_nodes_and_return_specs(known, program)
    signature.input_specs = [specs[node.name] for node in program.graph.find_nodes(op="placeholder")]
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
