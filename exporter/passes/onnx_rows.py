"""Takes an ONNX step's lookups out of it: in place of token ids it is given rows of a table; it writes that table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

ROW = "row"


def lift(model: ir.Model) -> list[ir.TensorProtocol]:
    """Replace the token input by `row` (tokens, width), in place; returns the tables whose rows go side by side in it.

    Every use of the ids must be a lookup, Gather along the first axis.
    """
    graph = model.graph
    ids = graph.inputs[0]
    lookups = [node for node, _ in ids.uses()]
    tables = [node.inputs[0] for node in lookups]
    contents = [table.const_value for table in tables if table is not None and table.const_value is not None]
    if {node.op_type for node in lookups} != {"Gather"} or len(contents) != len(lookups):
        raise ValueError(f"the token ids go into {', '.join(node.op_type for node in lookups)}, not lookups only")
    widths = [int(tensor.shape.numpy()[1]) for tensor in contents]
    (tokens,) = ids.shape if ids.shape is not None else (1,)
    row = ir.Value(name=ROW, shape=ir.Shape((tokens, sum(widths))), type=ir.TensorType(ir.DataType.FLOAT))
    for node, part in zip(lookups, _parts(graph, row, widths), strict=True):
        (rows,) = node.outputs
        part.shape, part.type = rows.shape, rows.type
        ir.convenience.replace_all_uses_with(rows, part)
        graph.remove(node, safe=True)
    graph.inputs[0] = row
    for table in tables:
        if table is not None and not list(table.uses()):
            graph.initializers.pop(str(table.name))
    return contents


def _parts(graph: ir.Graph, row: ir.Value, widths: Sequence[int]) -> Sequence[ir.Value]:
    """The row itself, or one slice of it for each table."""
    if len(widths) == 1:
        return [row]
    sizes = ir.Tensor(np.array(widths, np.int64), name="row.sizes")
    held = ir.Value(name="row.sizes", const_value=sizes, shape=sizes.shape, type=ir.TensorType(sizes.dtype))
    graph.register_initializer(held)
    split = ir.node("Split", [row, held], {"axis": 1}, num_outputs=len(widths))
    graph.insert_before(graph[0], split)
    for number, part in enumerate(split.outputs):
        part.name = f"row.{number}"
    return split.outputs


def write_table(tables: Sequence[ir.TensorProtocol], path: Path, dtype: str) -> int:
    """The rows of all tables of a token side by side, little-endian; returns the width of such a row."""
    whole = np.concatenate([np.asarray(tensor.numpy(), dtype) for tensor in tables], 1)
    whole.astype(np.dtype(dtype).newbyteorder("<")).tofile(path)
    return int(whole.shape[1])
