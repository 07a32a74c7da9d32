"""The weights of a step module as Core AI stores them, compressed by coreai-opt; it converts nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from subprocess import SubprocessError
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporter.contract import ModelSpec
from exporter.models.layers import Linear, StepModel
from exporter.models.parameters import value
from exporter.passes import torch_quantise, torch_tables
from exporter.passes.torch_quantise import ADAPTER, HEAD
from exporter.progress import Progress
from exporter.quiet import quiet
from runtimes.manifest import Kept, Precision

BLOCK = 32  # inputs that share a scale: one a channel gives wrong numbers on Core AI's GPUs, as others found
ROWS = 16  # outputs that share a palette, as Apple's preset has it


@dataclass(frozen=True)
class Storage:
    """How the matrices of products are stored.

    bits:    of the projections; the head, adapters and tables have 8 in any case
    palette: whether bits are indices into a palette, or steps of a scale
    """

    bits: int
    palette: bool = False

    def compress(self, part: Projection, bits: int) -> None:
        """Put an operator that unfolds compressed numbers in place of a projection's weight."""
        with quiet():
            maker = _palettiser(part.weight, bits) if self.palette else _quantiser(part.weight, bits)
            made = maker(part)
            made.prepare((torch.zeros(1, part.weight.shape[1]),))
            made.finalize()


STORED = {"int8": Storage(8), "int4": Storage(4), "lut8": Storage(8, True), "lut4": Storage(4, True)}
"""Precisions whose matrices are compressed; all of them compute in float16."""

VECTORS = Kept(
    "vectors, and matrices that no product or lookup takes",
    "float16",
    "norms, mixing weights and decays are a thousandth of the bytes, and a rounded decay is wrong at every token",
)
TABLES = Kept(
    "tables", "int8", "rows are looked up, then scaled: stored otherwise, a whole table is unfolded for one row"
)
WIDE = "4 bits cost too much here: decays come from the adapters, and a fifth of all KL from the head"


class Projection(nn.Module):
    """A linear as a convolution of 1 x 1, which the Neural Engine is made for and Apple's interpreter rounds less in.

    weight: (out, in, 1, 1)
    """

    weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight[:, :, None, None], requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        tokens = x.shape[0]
        channels = x if tokens == 1 else x.t()
        made = F.conv2d(channels.reshape(1, -1, 1, tokens), self.weight, self.bias)
        return made.reshape(1, -1) if tokens == 1 else made.reshape(-1, tokens).t()


class HalfTable(torch_tables.Table):
    """A table of 8 bits whose rows are float16."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(T,) -> (T, C) float16."""
        return super().forward(tokens).to(torch.float16)


def give_values(
    model: StepModel,
    spec: ModelSpec,
    precision: str,
    progress: Progress,
    *,
    wide: Callable[[str], bool] = lambda name: False,
) -> Precision:
    """Read every parameter and store it in "fp32", "fp16" or as STORED says; returns what became of them.

    wide: whether a parameter was chosen to stay float16, of which nothing is said

    Linears become projections, tables of compressed models HalfTables. Two parameters are in memory as float32 at most.
    """
    storage = STORED.get(precision)
    if storage:
        torch_quantise.balance(model)
    tables = torch_tables.looked_up(model, spec) if storage else set()
    dtype = torch.float32 if precision == "fp32" else torch.float16
    wider: set[str] = set()
    with progress("reading the weights", len(list(model.parameters()))) as advance:
        for path, part in list(model.named_modules()):
            linear = isinstance(part, Linear)
            for name, made in list(part.named_parameters(recurse=False)):
                table = made in tables and not wide(f"{path}.{name}".removeprefix("."))
                _give(part, name, made, table=table, dtype=torch.float32 if linear else dtype)
                advance(1)
            if linear:
                _project(model, path, None if wide(f"{path}.weight") else storage, wider)
                model.get_submodule(path).to(dtype)
    return _described(precision, dtype, storage, wider, has_tables=bool(tables))


def _give(part: nn.Module, name: str, made: nn.Parameter, *, table: bool, dtype: torch.dtype) -> None:
    """Read a parameter; a table becomes a module of the same name."""
    if table:
        delattr(part, name)
        rounded = torch_tables.rounded(value(made))
        setattr(part, name, HalfTable(rounded.values, rounded.scales))
    else:
        part.register_parameter(name, nn.Parameter(value(made).to(dtype), requires_grad=False))


def _project(model: nn.Module, path: str, storage: Storage | None, wider: set[str]) -> None:
    """Put a projection in place of the linear at `path`, compressed where that is wanted."""
    linear: Any = model.get_submodule(path)
    made = Projection(linear.weight, linear.bias)
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, made)
    if storage is None:
        return
    name = f"{path}.weight"
    wide = name == HEAD or ADAPTER.search(name) is not None
    if wide and storage.bits < 8:
        wider.add(re.sub(r"\.\d+\.", ".*.", name))
    storage.compress(made, 8 if wide else storage.bits)


def lacking() -> str | None:
    """Why palettes cannot be made here: coreai-opt compiles its k-means when it is first wanted."""
    try:
        with quiet():
            from coreai_opt.deps import _kmeans1d

            _kmeans1d.cluster([0.0, 1.0], 1)
    except (RuntimeError, OSError, SubprocessError) as error:
        return f"coreai-opt cannot compile its k-means: {str(error).splitlines()[0]}"
    return None


def _quantiser(weight: Tensor, bits: int) -> Any:
    """Symmetric, a scale for every block of inputs, or for every output where inputs do not divide into blocks."""
    from coreai_opt.quantization import ModuleQuantizerConfig, Quantizer, QuantizerConfig
    from coreai_opt.quantization.config.quantization_config import ExecutionMode
    from coreai_opt.quantization.spec import (
        PerBlockGranularity,
        PerChannelGranularity,
        QuantizationScheme,
        QuantizationSpec,
    )

    blocks = weight.shape[1] % BLOCK == 0
    spec = QuantizationSpec(
        dtype=getattr(torch, f"int{bits}"),
        qscheme=QuantizationScheme.SYMMETRIC,
        granularity=PerBlockGranularity(axis=1, block_size=BLOCK) if blocks else PerChannelGranularity(axis=0),
    )
    only = ModuleQuantizerConfig(op_input_spec=None, op_output_spec=None, op_state_spec={"weight": spec})
    config = QuantizerConfig(global_config=only, execution_mode=ExecutionMode.EAGER)
    return lambda part: Quantizer(part, config)


def _palettiser(weight: Tensor, bits: Any) -> Any:
    """The best palettes there are, by k-means: of 4 bits for every 16 outputs where they divide so, else for all."""
    from coreai_opt.palettization import KMeansPalettizer, KMeansPalettizerConfig
    from coreai_opt.palettization.config import ModuleKMeansPalettizerConfig
    from coreai_opt.palettization.spec import PalettizationSpec, PerGroupedChannelGranularity, PerTensorGranularity

    groups = bits < 8 and weight.shape[0] % ROWS == 0
    granularity = PerGroupedChannelGranularity(axis=0, group_size=ROWS) if groups else PerTensorGranularity()
    spec = PalettizationSpec(n_bits=bits, granularity=granularity)
    only = ModuleKMeansPalettizerConfig(op_input_spec=None, op_output_spec=None, op_state_spec={"weight": spec})
    config = KMeansPalettizerConfig(global_config=only)
    return lambda part: KMeansPalettizer(part, config)


def _described(
    precision: str, dtype: torch.dtype, storage: Storage | None, wider: set[str], *, has_tables: bool
) -> Precision:
    compute = str(dtype).removeprefix("torch.")
    if storage is None:
        return Precision(compute, compute)
    eight = "lut8" if storage.palette else "int8"
    kept = [Kept(name, eight, WIDE) for name in sorted(wider)]
    tables = [TABLES] if has_tables and precision != "int8" else []
    return Precision(precision, compute, (*kept, *tables, VECTORS))
