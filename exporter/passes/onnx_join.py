"""One ONNX graph for any number of tokens: a step traced around its recurrences, and each recurrence's forms in it.

Weights are then held once in memory for decode and prefill alike. The recurrence of every block is a choice by the
number of tokens: the plain step for one, else the smallest block form that holds them, the rest being tokens of zeros
where those leave the state as it was. It changes no arithmetic outside the recurrences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import onnx_ir as ir
import torch
from onnx_ir.passes.common import NameFixPass
from torch import Tensor, nn

from exporter.models.blocks import BlockRecurrence

DOMAIN = "rwkv_export"
OPEN = "Recurrence"

Trace = Callable[[nn.Module, tuple[Tensor, ...]], ir.Model]
"""A module and example inputs to an ONNX model whose inputs are these and the module's parameters, in order."""


@dataclass(frozen=True)
class Opened:
    """One recurrence that was left open.

    part:     the module
    operands: shapes of what it was called with, the first dimension of per-token operands being any
    """

    part: BlockRecurrence
    operands: tuple[tuple[int, ...], ...]

    def examples(self, tokens: int) -> tuple[Tensor, ...]:
        """Operands for `tokens` tokens."""
        shapes = [(tokens, *shape[1:]) if i < self.part.given else shape for i, shape in enumerate(self.operands)]
        return tuple(torch.zeros(shape) for shape in shapes)


@contextmanager
def open_recurrences(model: nn.Module) -> Iterator[dict[str, Opened]]:
    """Within the block every recurrence is traced as one open node; what was opened, by its path."""
    opened: dict[str, Opened] = {}
    parts = {name: part for name, part in model.named_modules() if isinstance(part, BlockRecurrence)}
    for name, part in parts.items():
        part.forward = _opening(name, part, opened)  # type: ignore[assignment, method-assign]
    try:
        yield opened
    finally:
        for part in parts.values():
            del part.forward  # what hid the method of the class


def _opening(name: str, part: BlockRecurrence, opened: dict[str, Opened]) -> Callable[..., Sequence[Tensor]]:
    def forward(*operands: Tensor) -> Sequence[Tensor]:
        first, *_ = operands
        state = operands[part.given :]
        static = tuple((1, *tensor.shape[1:]) for tensor in operands)
        opened[name] = Opened(part, tuple(tuple(int(size) for size in shape) for shape in static))
        return torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{OPEN}",
            [*operands, *(made for _, made in part.named_parameters())],
            {"part": name},
            dtypes=[tensor.dtype for tensor in (first, *state)],
            shapes=[tensor.shape for tensor in (first, *state)],
            version=1,
        )

    return forward


def join(model: ir.Model, opened: Mapping[str, Opened], sizes: Sequence[int], trace: Trace) -> bool:
    """Close every open node of `model` with the forms of its recurrence for 1 and for each of `sizes` tokens, in place.

    The forms are functions of the model that all blocks share; a block's own parameters are arguments. Returns whether
    the graph takes any number of tokens up to the largest size, or exactly 1 and these.
    """
    first, *_ = opened.values()
    sizes = (1, *sorted(sizes))
    for size in sizes:
        function = _function(trace(first.part, first.examples(size)), size)
        model.functions[function.identifier()] = function
    model.graph.opset_imports[DOMAIN] = 1
    counted = _Counted(model.graph, sizes)
    for node in [node for node in model.graph if node.domain == DOMAIN]:
        part = opened[node.attributes["part"].as_string()].part
        chosen = _choice(node, part, sizes, counted)
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [chosen], node.outputs, chosen.outputs)
    NameFixPass()(model)
    return first.part.idle_zeros


def _function(traced: ir.Model, size: int) -> ir.Function:
    """The traced recurrence, its constants inside: a function has no initializers."""
    graph, constants = traced.graph, []
    for name, held in list(graph.initializers.items()):
        constant = ir.node("Constant", [], {"value": cast(ir.TensorProtocol, held.const_value)})
        del graph.initializers[name]
        held.name = None
        constant.outputs[0].name = name
        ir.convenience.replace_all_uses_with(held, constant.outputs[0])
        constants.append(constant)
    graph.insert_before(graph[0], constants)
    return ir.Function(DOMAIN, f"{OPEN}{size}", graph=graph, attributes=[])


class _Counted:
    """The values that all choices share: the number of tokens, whether it is at most a size, and paddings up to it."""

    def __init__(self, graph: ir.Graph, sizes: Sequence[int]) -> None:
        self._graph, self._first = graph, graph[0]
        (tokens, *_) = graph.inputs
        self.tokens = self._add("Shape", [tokens])
        self.fits = {size: self._add("LessOrEqual", [self.tokens, self._constant([size])]) for size in sizes}
        self.zero = self._constant([0])
        self._lacking = {size: self._add("Sub", [self._constant([size]), self.tokens]) for size in sizes}
        self._paddings: dict[tuple[int, int], ir.Value] = {}

    def padding(self, size: int, rank: int) -> ir.Value:
        """The `pads` of a Pad that brings the first of `rank` axes to `size`."""
        if (size, rank) not in self._paddings:
            begins, ends = self._constant([0] * rank), self._constant([0] * (rank - 1))
            pads = self._add("Concat", [begins, self._lacking[size], ends], {"axis": 0})
            self._paddings[size, rank] = pads
        return self._paddings[size, rank]

    def _constant(self, values: list[int]) -> ir.Value:
        return self._add("Constant", [], {"value_ints": values})

    def _add(
        self, op: str, inputs: list[ir.Value], attributes: Mapping[str, int | list[int]] | None = None
    ) -> ir.Value:
        node = ir.node(op, inputs, attributes)
        self._graph.insert_before(self._first, node)
        return node.outputs[0]


def _choice(node: ir.Node, part: BlockRecurrence, sizes: Sequence[int], counted: _Counted) -> ir.Node:
    """If at most the first size, its form; else if at most the next ..., else that of the last."""
    size, *larger = sizes
    if len(larger) == 1:
        otherwise = _branch(node, part, larger[0], counted)
    else:
        nested = _choice(node, part, larger, counted)
        otherwise = ir.Graph([], nested.outputs, nodes=[nested], name=f"more than {size} tokens")
    branches = {"then_branch": _branch(node, part, size, counted), "else_branch": otherwise}
    chosen = ir.node("If", [counted.fits[size]], branches, num_outputs=len(node.outputs))
    _typed(chosen.outputs, node)
    return chosen


def _branch(node: ir.Node, part: BlockRecurrence, size: int, counted: _Counted) -> ir.Graph:
    """A call of the form for `size` tokens on the operands of `node`, filled up, and as much as it has tokens of y."""
    operands, nodes = [cast(ir.Value, operand) for operand in node.inputs], []
    fill = size > 1 and part.idle_zeros
    for i in range(part.given if fill else 0):
        rank = len(cast(ir.Shape, operands[i].shape))
        padded = ir.node("Pad", [operands[i], counted.padding(size, rank)])
        nodes.append(padded)
        (operands[i],) = padded.outputs
    call = ir.node(f"{OPEN}{size}", operands, domain=DOMAIN, num_outputs=len(node.outputs))
    nodes.append(call)
    y, *state = call.outputs
    if fill:
        cut = ir.node("Slice", [y, counted.zero, counted.tokens, counted.zero])
        nodes.append(cut)
        (y,) = cut.outputs
    _typed([y, *state], node)
    return ir.Graph([], [y, *state], nodes=nodes, name=f"{size} tokens")


def _typed(values: Sequence[ir.Value], like: ir.Node) -> None:
    for value, given in zip(values, like.outputs, strict=True):
        value.type, value.shape = given.type, given.shape
