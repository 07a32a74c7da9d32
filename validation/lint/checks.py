"""What each rule finds in a program: one function a rule, named as it is, yielding the places; it weighs nothing.

Functions that take a Program look at a whole package, those that take a Graph at one function of it.
"""

# The rules are documented in rules.py: docstrings here say only what is easily mistaken.
# ruff: noqa: D103

from __future__ import annotations

from collections.abc import Iterator

from validation.lint.graph import Graph, Op, Program, Value

LIMIT = 1_000_000_000  # bytes
AXIS = 16_384
CHANNELS = 65_536
LANE = 64  # bytes
STATE_LANE = 32  # elements
NORMAL = 2.0**-14  # the smallest normal float16, 6.1e-5

BYTES = {"FLOAT16": 2, "FLOAT32": 4, "FLOAT64": 8}
WIDE = ("FLOAT32", "FLOAT64")
INTEGERS = ("INT32", "UINT32", "INT64", "UINT64", "BOOL")
PRODUCTS = ("conv", "linear", "matmul")
GATHERS = ("gather", "gather_nd", "gather_along_axis")
SUMS = ("reduce_sum", "reduce_mean")
SQUARED_SUMS = ("reduce_sum_square", "reduce_l2_norm")


def package_size(program: Program) -> Iterator[str]:
    if program.stored > LIMIT:
        yield f"{program.stored / 1e9:.2f} GB"


def expanded_size(program: Program) -> Iterator[str]:
    expanded = max((graph.expanded for graph in program.graphs), default=0)
    if program.stored <= LIMIT < expanded:
        yield f"{expanded / 1e9:.2f} GB from {program.stored / 1e9:.2f}"


def states(graph: Graph) -> Iterator[str]:
    if len(graph.states) > 1:
        yield from (state.name for state in graph.states)


def state_alignment(graph: Graph) -> Iterator[str]:
    yield from (_shaped(state) for state in graph.states if state.sizes and state.sizes[-1] % STATE_LANE)


def flexible_shape(graph: Graph) -> Iterator[str]:
    yield from (_shaped(value) for value in graph.inputs if None in value.shape)


def fp32_compute(graph: Graph) -> Iterator[str]:
    """Conversions at the edges are not arithmetic."""
    for op in graph.ops:
        if op.kind != "cast" and any(value.element in WIDE for value in op.outputs):
            yield str(op)


def fp32_io(graph: Graph) -> Iterator[str]:
    yield from (value.name for value in _ports(graph) if value.element in WIDE)


def io_alignment(graph: Graph) -> Iterator[str]:
    for value in _ports(graph):
        if value.sizes and value.sizes[-1] > 1 and value.sizes[-1] * BYTES[value.element] % LANE:
            yield _shaped(value)


def io_singleton(graph: Graph) -> Iterator[str]:
    yield from (_shaped(value) for value in _ports(graph) if value.sizes and value.sizes[-1] == 1 < value.size)


def rank_limit(graph: Graph) -> Iterator[str]:
    yield from _of_rank(graph, 6, 99)


def rank_five(graph: Graph) -> Iterator[str]:
    yield from _of_rank(graph, 5, 5)


def linear(graph: Graph) -> Iterator[str]:
    for op in graph.ops:
        if op.kind == "linear" or (op.kind == "matmul" and any(value.constant for value in _operands(op))):
            yield str(op)


def outer_product(graph: Graph) -> Iterator[str]:
    for op in graph.ops:
        x, turned = op.input("x"), op.input("transpose_x")
        if op.kind == "matmul" and x and len(x.shape) > 1 and x.shape[-2 if turned and turned.number else -1] == 1:
            yield str(op)


def product_limit(graph: Graph) -> Iterator[str]:
    yield from (str(op) for op in graph.ops if _beyond_limits(op))


def dimension(graph: Graph) -> Iterator[str]:
    for op in graph.ops:
        if not _beyond_limits(op) and any(size > AXIS for value in op.outputs for size in value.sizes):
            yield f"{op} {list(op.outputs[0].sizes)}"


def integer_compute(graph: Graph) -> Iterator[str]:
    yield from (str(op) for op in graph.ops if any(value.element in INTEGERS for value in op.outputs))


def indexing(graph: Graph) -> Iterator[str]:
    others = ("topk", "argsort", "non_zero", "one_hot", "cumsum")
    yield from (str(op) for op in graph.ops if op.kind in (*GATHERS, *others) or op.kind.startswith("scatter"))


def control_flow(graph: Graph) -> Iterator[str]:
    kinds = ("while_loop", "cond", "make_list", "rnn", "gru", "lstm")
    yield from (str(op) for op in graph.ops if op.kind in kinds or op.kind.startswith("list_"))


def block_scales(graph: Graph) -> Iterator[str]:
    """A palette has two more axes than its weights: its colours, and the elements of one."""
    for op in graph.constexpr:
        scale, palette = op.input("scale"), op.input("lut")
        if op.kind == "constexpr_blockwise_shift_scale" and scale:
            varies = scale.sizes
        elif op.kind == "constexpr_lut_to_dense" and palette and len(palette.shape) > 2:
            varies = palette.sizes[:-2]
        else:
            continue
        if sum(size > 1 for size in varies) > 1:
            yield str(op)


def small_epsilon(graph: Graph) -> Iterator[str]:
    """Of float16 operations; zero matters only where something is divided by what it is added to or compared with."""
    guards = {"add": ("x", "y"), "maximum": ("x", "y"), "clip": ("alpha",), "real_div": ("y",)}
    for op in graph.ops:
        if not _is_half(op):
            continue
        for name in ("epsilon", *guards.get(op.kind, ())):
            value = op.input(name)
            if value is None or value.number is None or abs(value.number) >= NORMAL:
                continue
            if value.number != 0 or name == "epsilon" or op.kind == "real_div":
                yield f"{op}: {value.number:.2g}"


def square_overflow(graph: Graph) -> Iterator[str]:
    squares = {value.name for op in graph.ops if _squares(op) for value in op.outputs}
    for op in graph.ops:
        x = op.input("x")
        if x and _is_half(op) and (op.kind in SQUARED_SUMS or (op.kind in SUMS and x.name in squares)):
            yield str(op)


def tile(graph: Graph) -> Iterator[str]:
    yield from (str(op) for op in graph.ops if op.kind == "tile")


def int16_gather(graph: Graph) -> Iterator[str]:
    for op in graph.ops:
        indices = op.input("indices")
        if op.kind in GATHERS and indices and indices.element in ("INT16", "UINT16"):
            yield str(op)


def wide_range(graph: Graph) -> Iterator[str]:
    yield from (str(op) for op in graph.ops if op.kind in ("exp", "exp2", "pow", "log"))


def _ports(graph: Graph) -> Iterator[Value]:
    """What the caller hands over and gets back in floating point; kept states are the system's."""
    yield from (value for value in (*graph.inputs, *graph.outputs) if value.element in BYTES)


def _of_rank(graph: Graph, least: int, most: int) -> Iterator[str]:
    for op in graph.ops:
        if any(least <= len(value.shape) <= most for value in op.outputs):
            yield f"{op} {list(op.outputs[0].sizes)}"


def _beyond_limits(op: Op) -> bool:
    """Of rank four only, where it is known which axis is which."""
    if op.kind not in PRODUCTS or not op.outputs or len(op.outputs[0].shape) != 4:
        return False
    _, channels, height, width = op.outputs[0].sizes
    return max(height, width) > AXIS or channels > CHANNELS


def _operands(op: Op) -> Iterator[Value]:
    yield from (value for name in ("x", "y") for value in op.inputs.get(name, ()))


def _is_half(op: Op) -> bool:
    return any(value.element == "FLOAT16" for value in op.outputs)


def _squares(op: Op) -> bool:
    x, y = op.input("x"), op.input("y")
    if op.kind == "square":
        return True
    if x is None or y is None:
        return False
    return (op.kind == "mul" and x.name == y.name) or (op.kind == "pow" and y.number == 2)


def _shaped(value: Value) -> str:
    return f"{value.name} {['?' if size is None else size for size in value.shape]}".replace("'", "")
