"""Stores the matrices of an ONNX graph in 8 or 4 bits, for ONNX Runtime's own operators; the rounding is elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from exporter.passes.onnx_balance import balance, weights
from exporter.passes.onnx_gptq import Compensated
from exporter.passes.onnx_rounding import Blocks, Channels, Latest, Rows, Storage, Tensors
from runtimes.contract import Array
from runtimes.manifest import Kept

DOMAIN = "com.microsoft"
HEAD = re.compile(r"(^|\.)head\.weight$")
ADAPTER = re.compile(r"[._](down|up)\.")


@dataclass(frozen=True)
class Preset:
    """What is stored how.

    matrices: the projections of the blocks
    adapters: low-rank pairs, named "down" and "up": a twentieth of the bytes, and decays come from them
    head:     the projection to logits
    tables:   rows looked up by token: no time is spent on them, only disk
    """

    matrices: Channels | Blocks
    adapters: Channels | Blocks
    head: Channels | Blocks
    tables: Rows

    def of(self, name: str) -> Storage:
        """How the matrix of a product is stored."""
        if HEAD.search(name):
            return self.head
        return self.adapters if ADAPTER.search(name) else self.matrices


TABLES = Rows(bits=8, block=32)  # 4 bits would make up a fifth to a half of all KL

PRESETS: Mapping[str, Preset] = {
    "int8": Preset(Channels(), Channels(), Channels(), TABLES),
    "int8-b32": Preset(Blocks(8, 32), Blocks(8, 32), Blocks(8, 32), TABLES),
    "int4": Preset(Blocks(4, 32), Channels(), Blocks(4, 32), TABLES),
    "int4-b128": Preset(Blocks(4, 128), Channels(), Blocks(4, 128), TABLES),
    "int4-int8": Preset(Blocks(4, 32), Channels(), Channels(), TABLES),
}

VECTORS = "norms, mixing weights and decays are a thousandth of the bytes, and a rounded decay is wrong at every token"
ELEMENTWISE = "no product or lookup takes it, and it is as small as a vector"
UNSUITED = "ONNX Runtime has no quantised operator for what takes it"
UNEVEN = "a row of an odd number of 4-bit values does not end on a byte"


def quantise(
    model: ir.Model,
    preset: Preset,
    moments: Mapping[str, Array] | None = None,
    *,
    wide: Callable[[str], bool] = lambda name: False,
) -> tuple[Kept, ...]:
    """Replace products and lookups by quantised ones, in place; what stays float32, and why.

    moments: X^T X / n (K, K) of the inputs X (n, K) that matrices take on a text, by name, which 4 bits then mind
    wide:    whether a parameter was chosen to stay float32, of which nothing is said

    No weight is read: like those they replace, the new initializers are made when they are written. Their names and
    values depend on the parameter alone, so that graphs of any number of tokens can share them.
    """
    quieted = balance(model)
    kept: dict[str, Kept] = {}
    latest = Latest()
    for name, matrix in list(model.graph.initializers.items()):
        if not isinstance(matrix.const_value, ir.LazyTensor) or wide(name):
            continue  # a constant of the graph, no parameter; or one that is kept
        taken = {_taken(node, index) for node, index in matrix.uses()}
        storage = preset.tables if taken == {"rows"} else preset.of(name)
        if moments and name in moments and isinstance(storage, Blocks) and storage.bits == 4:
            storage = Compensated(storage, partial(_moment, moments[name], quieted.get(name)))
        if reason := _unfit(matrix, taken, storage):
            pattern = "vectors" if reason == VECTORS else re.sub(r"\.\d+\.", ".*.", name)
            kept[pattern] = Kept(pattern, "float32", reason)
        else:
            _replace(model.graph, matrix, storage, latest)
    model.graph.opset_imports[DOMAIN] = 1
    return tuple(kept.values())


def _moment(moment: Array, divided_by: Callable[[], Array] | None) -> Array:
    """That of the same inputs divided by factors (K,)."""
    if divided_by is None:
        return moment
    factors = divided_by()
    quieter: Array = moment / factors / factors[:, None]
    return quieter


def _taken(node: ir.Node, index: int) -> str:
    """How a node takes an input: "rows" looked up, columns or rows of a product ("(K, N)", "(N, K)"), or otherwise."""
    number = node.attributes
    if node.op_type == "Gather" and index == 0 and number.get_int("axis", 0) == 0:
        return "rows"
    if node.op_type == "MatMul" and index == 1:
        return "(K, N)"
    if node.op_type == "Gemm" and index == 1 and not number.get_int("transA", 0) and _is_plain(node):
        return "(N, K)" if number.get_int("transB", 0) else "(K, N)"
    return "elementwise" if node.op_type not in ("Gemm", "MatMul", "Gather") else "otherwise"


def _is_plain(node: ir.Node) -> bool:
    """Whether a Gemm is a product and at most a bias of one axis."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    unscaled = node.attributes.get_float("alpha", 1.0) == node.attributes.get_float("beta", 1.0) == 1
    return unscaled and (bias is None or (bias.shape is not None and len(bias.shape) == 1))


def _unfit(matrix: ir.Value, taken: set[str], storage: Storage) -> str | None:
    """Why the parameter stays float32, or None."""
    shape = _shape(matrix)
    if sum(size > 1 for size in shape) < 2:
        return VECTORS
    if taken == {"elementwise"}:
        return ELEMENTWISE
    if len(shape) != 2 or len(taken) != 1 or taken == {"otherwise"}:
        return UNSUITED
    return UNEVEN if isinstance(storage, Rows) and shape[1] * storage.bits % 8 else None


def _shape(value: ir.Value) -> tuple[int, ...]:
    return tuple(int(size) for size in weights(value).shape.numpy())


def _replace(graph: ir.Graph, matrix: ir.Value, storage: Storage, latest: Latest) -> None:
    """Put the operator of `storage` wherever `matrix` is taken."""
    uses, shape = list(matrix.uses()), _shape(matrix)
    transposed = _taken(*uses[0]) == "(K, N)"
    n, k = shape[::-1] if transposed else shape
    made = _made(matrix, storage, (n, k), latest, transposed=transposed)
    for part in made:
        graph.register_initializer(part)
    if isinstance(storage, Channels):
        made.append(_no_zero_points(graph, n))
    for node, _ in uses:
        inputs = _inputs(node, storage, *made)
        new = ir.node(storage.operator, inputs, storage.attributes(n, k), domain=DOMAIN, name=node.name)
        place = node.graph or graph
        ir.convenience.replace_nodes_and_values(place, node, [node], [new], node.outputs, new.outputs)
    del graph.initializers[str(matrix.name)]


def _made(
    matrix: ir.Value, storage: Storage, shape: tuple[int, int], latest: Latest, *, transposed: bool
) -> list[ir.Value]:
    """The initializers that stand for `matrix`, (N, K) once `transposed`: values, scales and perhaps zero points."""
    source, name = weights(matrix), str(matrix.name)

    def make() -> Tensors:
        stored = source.numpy()
        return storage.round(stored.T if transposed else stored)

    def read(part: str) -> ir.Tensor[Any]:
        return ir.Tensor(latest.take(name, part, make), name=f"{name}.{part}")

    return [
        _initializer(f"{name}.{part}", partial(read, part), ir.DataType.from_numpy(np.dtype(dtype)), ir.Shape(size))
        for part, (dtype, size) in storage.tensors(*shape).items()
    ]


def _initializer(name: str, read: Callable[[], ir.Tensor[Any]], dtype: ir.DataType, shape: ir.Shape) -> ir.Value:
    tensor = ir.LazyTensor(read, dtype=dtype, shape=shape, name=name)
    return ir.Value(name=name, shape=shape, type=ir.TensorType(dtype), const_value=tensor)


def _no_zero_points(graph: ir.Graph, n: int) -> ir.Value:
    """Zeros for the zero points of `n` outputs, which the graph's products share."""
    name = f"zeros.{n}"
    if name not in graph.initializers:
        zeros = ir.Tensor(np.zeros(n, np.int8), name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=zeros.shape, type=ir.TensorType(zeros.dtype), const_value=zeros)
        )
    return graph.initializers[name]


def _inputs(
    node: ir.Node, storage: Storage, values: ir.Value, scales: ir.Value, zeros: ir.Value | None = None
) -> list[ir.Value | None]:
    """In the operator's order; absent ones at the end are left out."""
    x, *rest = node.inputs
    if isinstance(storage, Rows):
        inputs = [values, rest[0], scales, zeros]
    elif isinstance(storage, Channels):
        inputs = [x, values, scales, zeros, *rest[1:]]
    else:
        inputs = [x, values, scales, zeros, None, *rest[1:]]  # None: the order of columns, which stays
    while inputs[-1] is None:
        inputs.pop()
    return inputs
