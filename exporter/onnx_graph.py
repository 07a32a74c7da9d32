"""Step modules to ONNX graphs, their weights still in the checkpoint; it writes no file and knows no precision."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import onnx_ir as ir
import torch
from onnx_ir.passes.common import OutputFixPass
from torch import Tensor, nn
from torch.export import ExportedProgram

from exporter import graph, ports
from exporter.passes import onnx_fuse, onnx_join, onnx_tidy, onnx_weights
from exporter.quiet import quiet


def fixed(model: nn.Module, named: ports.Ports, tokens: int, *, opset: int) -> ir.Model:
    """The graph of exactly `tokens` tokens."""
    return _step(model, named, graph.trace_without_weights(model, named.arguments(tokens)), opset)


def joined(model: nn.Module, named: ports.Ports, sizes: Sequence[int], *, opset: int) -> tuple[ir.Model, bool]:
    """One graph of 1 and of `sizes` tokens; whether it takes any number between them too, as most versions can."""
    inputs = named.arguments(max(sizes))
    with onnx_join.open_recurrences(model) as opened:
        program = graph.trace_without_weights(model, inputs, graph.any_length(inputs))
    made = _step(model, named, program, opset)
    return made, onnx_join.join(made, opened, sizes, partial(_part, opset=opset))


def _step(model: nn.Module, named: ports.Ports, program: ExportedProgram, opset: int) -> ir.Model:
    made = _translated(program, opset, named.inputs(), named.outputs())
    onnx_weights.attach(made, dict(model.named_parameters()))
    return _cleaned(made)


def _part(part: nn.Module, operands: tuple[Tensor, ...], *, opset: int) -> ir.Model:
    """The graph of a part of a step that every block has: its parameters are inputs, in order, after the operands.

    They are so before constants are folded, or one block's values would be in the graph of all.
    """
    made = _translated(graph.trace_without_weights(part, operands), opset)
    for name, _ in part.named_parameters():
        parameter = made.graph.initializers.pop(name, None) or ir.Value(name=f"{name}.unused")
        parameter.const_value = None
        made.graph.inputs.append(parameter)
    OutputFixPass()(_cleaned(made))  # a recurrence may return one tensor as output and state
    return made


def _translated(
    program: ExportedProgram, opset: int, inputs: list[str] | None = None, outputs: list[str] | None = None
) -> ir.Model:
    with quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            optimize=False,
            verbose=False,
        )
    return cast("torch.onnx.ONNXProgram", exported).model  # None only where a path is given


def _cleaned(made: ir.Model) -> ir.Model:
    onnx_tidy.tidy(made)
    onnx_fuse.fuse(made)
    onnx_tidy.strip(made)
    return made
