"""Puts our operators in place of the nodes of a graph that they can compute; weights stay where they are, on disk."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

DOMAIN = "rwkv_export.native"
MICROSOFT = "com.microsoft"
RECURRENCE = re.compile(r"Recurrence\d+")
OPERANDS = 7  # of RWKV-7's recurrence: r, log_w, k, v, kk, b and the state

Nodes = Any  # a repeated field of onnx.NodeProto; onnx is imported late, artifacts of other kinds do without it


def rewrite(path: Path, version: str) -> bytes:
    """The model at `path`, of this RWKV version, with our operators in it; external data is not touched.

    What our operators cannot do stays as it is: other bit widths and groupings, weights that are no initializers,
    other versions' recurrences.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.domain == MICROSOFT:
            _product(node, constants, path.parent)
    if version in ("7", "7a"):
        _recurrences(model)
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return bytes(model.SerializeToString())


def _product(node: Any, constants: Mapping[str, Any], folder: Path) -> None:
    """One product with quantised weights, in place."""
    names = [*node.input, *[""] * 6]
    if any(name not in constants for name in names[1:3]):
        return
    if node.op_type == "MatMulNBits":
        numbers = {"bits": 4} | {attribute.name: attribute.i for attribute in node.attribute}
        if _in_blocks(numbers, names, constants):
            kept = {name: numbers[name] for name in ("N", "K", "bits", "block_size")}
            kept["zero_points"] = int(bool(names[3]))
            _become(node, "MatMulBlocks", [*names[:4], names[5]], kept)
    elif node.op_type == "DynamicQuantizeMatMul" and _by_column(names, constants, folder):
        _become(node, "MatMulColumns", [*names[:3], "", names[4]])


def _become(node: Any, name: str, inputs: list[str], numbers: Mapping[str, int] | None = None) -> None:
    from onnx import helper

    while not inputs[-1]:
        inputs.pop()
    made = helper.make_node(name, inputs, list(node.output), name=node.name, domain=DOMAIN)
    made.attribute.extend(helper.make_attribute(key, number) for key, number in (numbers or {}).items())
    node.CopyFrom(made)


def _in_blocks(numbers: Mapping[str, int], names: list[str], constants: Mapping[str, Any]) -> bool:
    """Of whole groups of 32, columns in order (no g_idx), zero points, if any, packed as 4 bits."""
    from onnx import TensorProto

    bits, block = numbers["bits"], numbers["block_size"]
    if bits not in (4, 8) or block % 32 or names[4]:
        return False
    zeros = constants.get(names[3])
    return not names[3] or (bits == 4 and zeros is not None and zeros.data_type == TensorProto.UINT8)


def _by_column(names: list[str], constants: Mapping[str, Any], folder: Path) -> bool:
    """Signed, around zero, with a scale for each column."""
    from onnx import TensorProto, numpy_helper

    codes, scales = (constants[name] for name in names[1:3])
    if codes.data_type != TensorProto.INT8 or list(scales.dims) != list(codes.dims[1:]):
        return False
    zeros = constants.get(names[3])
    return not names[3] or (zeros is not None and not np.any(numpy_helper.to_array(zeros, str(folder))))


def _recurrences(model: Any) -> None:
    """Every choice between forms of the recurrence becomes one node, in place; forms nobody calls any more go."""
    for node in model.graph.node:
        if (call := _chosen(node)) is not None and len(call.input) == OPERANDS and len(call.output) == 2:
            _become(node, "Recurrence7", list(call.input))
    called = {(node.domain, node.op_type) for node in _all_nodes(model.graph.node)}
    for function in [f for f in model.functions if (f.domain, f.name) not in called]:
        model.functions.remove(function)


def _chosen(node: Any) -> Any:
    """The call that is made of a recurrence for one token, or None where the node is no such choice."""
    if node.op_type != "If":
        return None
    then = next(attribute.g for attribute in node.attribute if attribute.name == "then_branch")
    calls = [inner for inner in then.node if RECURRENCE.fullmatch(inner.op_type)]
    return calls[0] if len(then.node) == len(calls) == 1 else None


def _all_nodes(nodes: Nodes) -> Iterator[Any]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_nodes(attribute.g.node)
