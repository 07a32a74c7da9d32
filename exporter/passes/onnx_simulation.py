"""Matrices as ONNX Runtime's quantised operators compute with them: each in a graph of its own; it writes no file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from exporter.passes.onnx_quantise import DOMAIN, Preset
from exporter.passes.onnx_rounding import Channels, Rows, Storage, Tensors
from exporter.simulation import Matrix, Spread, Table
from runtimes.contract import Array

IDS = 4096  # rows looked up at once


class OnnxSimulation:
    """A preset of onnx_quantise."""

    says = "weights and activations as ONNX Runtime's own operators round them, a token at a time"
    wide = 4
    balanced = True
    spreads = False

    def __init__(self, preset: Preset) -> None:
        self.preset = preset

    def matrix(self, name: str, weight: Tensor, bias: Tensor | None, spread: Spread | None) -> Matrix | None:
        """Run by the operator that the export would put in its place; rows and columns stay as they are."""
        if min(weight.shape) < 2:
            return None
        storage = self.preset.of(name)
        made = storage.round(weight.numpy())
        call = _operator(storage, made, weight.shape)
        each = isinstance(storage, Channels)  # whose activations share a scale within a call
        return Matrix(_kind(storage), _size(made), partial(_product, call, bias, each=each))

    def table(self, name: str, values: Tensor) -> Table | None:
        """Every row as the operator looks it up."""
        storage = self.preset.tables
        made = storage.round(values.numpy())
        call = _operator(storage, made, values.shape)
        parts = [call(np.arange(start, min(start + IDS, len(values)))) for start in range(0, len(values), IDS)]
        return Table(_kind(storage), _size(made), torch.from_numpy(np.concatenate(parts)))


def _kind(storage: Storage) -> str:
    if isinstance(storage, Channels):
        return "8 bits, a scale for each output"
    bits, block = storage.bits, storage.block  # type: ignore[attr-defined]
    return f"{bits} bits, a scale for each {block} {'values of a row' if isinstance(storage, Rows) else 'inputs'}"


def _size(made: Tensors) -> int:
    return sum(part.nbytes for part in made.values())


def _operator(storage: Storage, made: Tensors, shape: torch.Size) -> Callable[[Array], Array]:
    """The one operator as a function of its first input that is no constant."""
    n, k = shape
    rows = isinstance(storage, Rows)
    parts = [numpy_helper.from_array(array, name) for name, array in made.items()]
    names = list(made)
    if isinstance(storage, Channels):
        parts.append(numpy_helper.from_array(np.zeros(n, np.int8), "zeros"))
        names.append("zeros")
    inputs = [names[0], "x", *names[1:]] if rows else ["x", *names]
    node = helper.make_node(storage.operator, inputs, ["y"], domain=DOMAIN)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in storage.attributes(n, k).items())
    kind = onnx.TensorProto.INT64 if rows else onnx.TensorProto.FLOAT
    taken = helper.make_tensor_value_info("x", kind, ["t"] if rows else ["t", k])
    given = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["t", k if rows else n])
    graph = helper.make_graph([node], "one", [taken], [given], parts)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


def _product(call: Callable[[Array], Array], bias: Tensor | None, x: Tensor, *, each: bool) -> Tensor:
    """With a call for each row, where `each`."""
    rows = np.ascontiguousarray(x.numpy())
    made = torch.from_numpy(np.concatenate([call(row) for row in rows[:, None]]) if each else call(rows))
    return made if bias is None else made + bias
