"""Stores the weights of an ML Program in few bits, by coremltools' own optimisers: which, in what layout, what not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from exporter.models.layers import Linear
from exporter.passes.mil_palette import palette
from runtimes.manifest import Kept

HEAD = re.compile(r"(^|_)head_weight")
ADAPTER = re.compile(r"_(down|up)(_\d+)?_weight|_weight_0(_|$)")  # or a slice of one, which the converter named itself
PRODUCTS = ("linear", "conv")
GROUP = 16  # outputs that share a palette
BLOCK = 32  # inputs that share a scale
SHARED_PALETTES = 18  # the iOS from which a matrix can have several palettes, and 4-bit integers exist

LOUD = "fewer bits here would make up a fifth of all KL"
SMALL = "a twentieth of the bytes, and decays come from them"
TABLE = "no time is spent on a table, and 4 bits would make up a fifth to a half of all KL"
UNEVEN = f"its inputs are no multiple of {BLOCK}, which share a scale"
VECTORS = "norms, mixing weights and decays are a thousandth of the bytes, and a rounded decay is wrong at every token"


@dataclass(frozen=True)
class Scheme:
    """How the projections of the blocks are stored; what else products and lookups take has 8 bits.

    palette: whether values are looked up among 2^bits; else they are integers with a scale, of a channel for 8 bits and
             of BLOCK inputs of one for 4
    """

    bits: int
    palette: bool = False


SCHEMES: Mapping[str, Scheme] = {
    "int8": Scheme(8),
    "w8a8": Scheme(8),  # and activations of 8 bits: mil_activations.py
    "int4": Scheme(4),
    "lut8": Scheme(8, palette=True),
    "lut6": Scheme(6, palette=True),
    "lut4": Scheme(4, palette=True),
}


@dataclass(frozen=True)
class Matrix:
    """A constant that a product or a lookup takes: its name in the program; its shape, (out, in, ...), (rows, ...)."""

    name: str
    shape: tuple[int, ...]
    table: bool

    def reason(self, scheme: Scheme) -> str | None:
        """Why it has int8 and a scale for each row where the projections have something else; None where it has too."""
        if scheme == SCHEMES["int8"]:
            return None
        if self.table:
            return TABLE
        if ADAPTER.search(self.name):
            return SMALL
        if HEAD.search(self.name):
            return LOUD if scheme.bits < 8 else None
        return UNEVEN if not scheme.palette and self.shape[1] % BLOCK else None


def compress(
    model: Any, scheme: Scheme, ios: str, choose: Callable[[list[Matrix]], list[Matrix]] = lambda found: found
) -> Any:
    """The MLModel of one function with its matrices stored as `scheme` has it; equal matrices become equal bytes.

    choose: which of them; the others stay as they are
    """
    import coremltools.optimize.coreml as optimize

    found = choose(matrices(model))
    alike = [matrix for matrix in found if matrix.reason(scheme) is None]
    settings = {matrix.name: _scaled(8) for matrix in found if matrix.reason(scheme)}
    if scheme.palette:
        palettes = {matrix.name: _palettes(matrix, scheme, ios) for matrix in alike}
        model = optimize.palettize_weights(model, optimize.OptimizationConfig(op_name_configs=palettes))
    else:
        settings |= {matrix.name: _scaled(scheme.bits) for matrix in alike}
    return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(op_name_configs=settings))


def matrices(model: Any) -> list[Matrix]:
    """Every constant matrix that a product or a lookup takes, in the order they are first taken."""
    operations = model.get_spec().mlProgram.functions["main"]
    (block,) = operations.block_specializations.values()
    shapes = {op.outputs[0].name: _shape(op.outputs[0]) for op in block.operations if op.type == "const"}
    taken: dict[str, bool] = {}
    for op in block.operations:
        if op.type in PRODUCTS:
            taken[op.inputs["weight"].arguments[0].name] = False
        elif op.type == "gather":
            taken.setdefault(op.inputs["x"].arguments[0].name, True)
    return [Matrix(name, shapes[name], table) for name, table in taken.items() if len(shapes.get(name, ())) > 1]


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(axis.constant.size for axis in value.type.tensorType.dimensions)


def _scaled(bits: int) -> Any:
    import coremltools.optimize.coreml as optimize

    if bits == 4:
        return optimize.OpLinearQuantizerConfig(
            dtype="int4", granularity="per_block", block_size=BLOCK, weight_threshold=0
        )
    return optimize.OpLinearQuantizerConfig(weight_threshold=0)  # symmetric int8, a scale for each output or row


def _palettes(matrix: Matrix, scheme: Scheme, ios: str) -> Any:
    """A palette for every GROUP outputs where that divides them and there can be several, else one for all."""
    import coremltools.optimize.coreml as optimize

    several = int(ios) >= SHARED_PALETTES and matrix.shape[0] % GROUP == 0
    return optimize.OpPalettizerConfig(
        mode="custom",
        lut_function=partial(palette, bits=scheme.bits),
        granularity="per_grouped_channel" if several else "per_tensor",
        group_size=GROUP,
        weight_threshold=0,
    )


def kept(scheme: Scheme, model: nn.Module, *, wide: str) -> tuple[Kept, ...]:
    """What of a step is not stored as the projections are, and why; `wide` is the type of what is not compressed."""
    linears = [(path, part.weight) for path, part in model.named_modules() if isinstance(part, Linear)]
    own = [Matrix(f"{path}_weight".replace(".", "_"), tuple(made.shape), table=False) for path, made in linears]
    reasons = {matrix.reason(scheme) for matrix in (*own, Matrix("emb", (), table=True))}
    others = {
        "head": LOUD,
        "low-rank adapters": SMALL,
        "embedding and other tables": TABLE,
        f"projections of inputs that {BLOCK} does not divide": UNEVEN,
    }
    eight = [Kept(tensors, "int8", reason) for tensors, reason in others.items() if reason in reasons]
    return (*eight, Kept("vectors, and matrices that no product or lookup takes", wide, VECTORS))
