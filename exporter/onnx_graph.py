"""Step modules to ONNX graphs, their weights still in the checkpoint; it writes no file and knows no precision."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from exporter import graph, ports
from exporter.passes import onnx_fuse, onnx_join, onnx_tidy, onnx_weights
from exporter.quiet import quiet


def fixed(model: nn.Module, named: ports.Ports, tokens: int, *, opset: int) -> ir.Model:
    """The graph of exactly `tokens` tokens."""
    program = graph.trace_without_weights(model, named.arguments(tokens))
    return _translate(program, model, named, opset=opset)


def joined(model: nn.Module, named: ports.Ports, sizes: Sequence[int], *, opset: int) -> tuple[ir.Model, bool]:
    """One graph of 1 and of `sizes` tokens; whether it takes any number between them too, as most versions can."""
    inputs = named.arguments(max(sizes))
    with onnx_join.open_recurrences(model) as opened:
        program = graph.trace_without_weights(model, inputs, graph.any_length(inputs))
    made = _translate(program, model, named, opset=opset)
    return made, onnx_join.join(made, opened, sizes, partial(_part, opset=opset))


def _part(part: nn.Module, operands: tuple[Tensor, ...], *, opset: int) -> ir.Model:
    return _translate(graph.trace_without_weights(part, operands), part, opset=opset)


def _translate(program: ExportedProgram, model: nn.Module, named: ports.Ports | None = None, *, opset: int) -> ir.Model:
    """The tidied graph of a traced module."""
    with quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=named.inputs() if named else None,
            output_names=named.outputs() if named else None,
            optimize=False,
            verbose=False,
        )
    made = cast("torch.onnx.ONNXProgram", exported).model  # None only where a path is given
    onnx_weights.attach(made, dict(model.named_parameters()))
    onnx_tidy.tidy(made)
    onnx_fuse.fuse(made)
    onnx_tidy.strip(made)
    return made
