"""Rounds the matrices of a step module to 8 or 4 bits through torchao, for delegates that round activations too."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from exporter.contract import ModelSpec
from exporter.models.layers import Linear, StepModel
from exporter.models.parameters import parameter, value
from exporter.passes import torch_tables
from exporter.passes.squared_relu import factors
from exporter.passes.torch_gptq import compensate
from exporter.progress import Progress
from exporter.quiet import quiet
from runtimes.contract import Array
from runtimes.manifest import Kept

HEAD = "head.weight"
ADAPTER = re.compile(r"[._](down|up)\.")
STEP = 32  # XNNPACK's groups of inputs are multiples of this


@dataclass(frozen=True)
class Grid:
    """How a matrix is stored: `bits` a value, and a scale for each output or for every `group` inputs of one.

    Symmetric about zero. Products round activations to 8 bits, with a scale and a zero point a token.
    """

    bits: int
    group: int | None = None

    def fitting(self, inputs: int) -> Grid | None:
        """This, or with the largest smaller group that divides so many inputs; None where no group does."""
        if self.group is None:
            return self
        sizes = [size for size in range(STEP, self.group + 1, STEP) if inputs % size == 0]
        return Grid(self.bits, sizes[-1]) if sizes else None

    def round(self, linear: nn.Module) -> None:
        """Put the rounded weight in place of a linear's: channels by their largest value, groups by least squares."""
        with quiet():
            from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
            from torchao.quantization.granularity import PerAxis, PerGroup
            from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm as Algorithm

            config = Int8DynamicActivationIntxWeightConfig(
                weight_dtype=getattr(torch, f"int{self.bits}"),
                weight_granularity=PerGroup(self.group) if self.group else PerAxis(0),
                weight_scale_dtype=torch.bfloat16 if self.group else None,
                intx_choose_qparams_algorithm=Algorithm.HQQ_SCALE_ONLY if self.group else Algorithm.AFFINE,
            )
            quantize_(linear, config, lambda part, _: part is linear)


CHANNELS = Grid(8)

PRESETS: Mapping[str, Grid] = {"8da8w": CHANNELS, "8da4w": Grid(4, 32), "8da4w-b128": Grid(4, 128)}
"""How the projections of the blocks are stored; the head, low-rank adapters and tables have 8 bits in all of them."""

VECTORS = Kept(
    "vectors, and matrices that no product or lookup takes",
    "float32",
    "norms, mixing weights and decays are a thousandth of the bytes, and a rounded decay is wrong at every token",
)
TABLE = "4 bits would make up a fifth to a half of all KL, and no time is spent on a table"
LOUD = "4 bits here would make up a fifth of all KL"
SMALL = "a twentieth of the bytes, and decays come from them"
UNEVEN = "its inputs are no multiple of 32, the smallest group of XNNPACK's that shares a scale"


def quantise(
    model: StepModel,
    spec: ModelSpec,
    grid: Grid,
    progress: Progress,
    moments: Mapping[str, Array] | None = None,
    *,
    wide: Callable[[str], bool] = lambda name: False,
) -> tuple[Kept, ...]:
    """Give every parameter its value, two in memory as float32 at most, and round what products and lookups take.

    moments: X^T X / n (K, K) of the inputs X (n, K) of linears on a text, by their weights' names, which 4 bits mind
    wide:    whether a parameter was chosen to stay float32, of which nothing is said

    Returns what stays wider than `grid`, and why. Afterwards the module computes as the delegate will.
    """
    quieted = balance(model)
    mind = partial(_moment, moments or {}, quieted)
    tables = torch_tables.looked_up(model, spec)
    wider: dict[str, str] = {}
    with progress("reading and rounding the weights", len(list(model.parameters()))) as advance:
        for path, part in list(model.named_modules()):
            for name, made in list(part.named_parameters(recurse=False)):
                table = made in tables and not wide(f"{path}.{name}".removeprefix("."))
                if table:
                    wider[_pattern(path, name)] = TABLE
                _give_value(part, name, made, table=table)
                advance(1)
            kept = wide(f"{path}.weight")
            if isinstance(part, Linear) and not kept and (reason := _round(part, path, grid, mind)):
                wider[_pattern(path, "weight")] = reason
    eight = (Kept(pattern, "int8", reason) for pattern, reason in wider.items() if grid.bits < CHANNELS.bits)
    return (*eight, VECTORS)


def balance(model: StepModel) -> dict[str, Callable[[], Tensor]]:
    """Make the channels of every squared ReLU equally loud, in the recipes of the matrices around it.

    By the name of every V, what its inputs are divided by, (F,).
    """
    quieted: dict[str, Callable[[], Tensor]] = {}
    for i, block in enumerate(model.blocks):
        ffn: Any = block.ffn
        found = cache(partial(_factors, ffn.key.weight, ffn.value.weight))
        ffn.key.weight = parameter(ffn.key.weight, partial(_quieter, ffn.key.weight, found))
        ffn.value.weight = parameter(ffn.value.weight, partial(_louder, ffn.value.weight, found))
        quieted[f"blocks.{i}.ffn.value.weight"] = partial(_squared, found)
    return quieted


def _factors(key: nn.Parameter, out: nn.Parameter) -> Tensor:
    return torch.from_numpy(factors(value(key).numpy(), value(out).numpy()))


def _quieter(key: nn.Parameter, found: Callable[[], Tensor]) -> Tensor:
    loudness = found()  # before the matrix is in memory
    return value(key) / loudness[:, None]


def _louder(out: nn.Parameter, found: Callable[[], Tensor]) -> Tensor:
    loudness = _squared(found)
    return value(out) * loudness


def _squared(found: Callable[[], Tensor]) -> Tensor:
    return found() ** 2


def _moment(moments: Mapping[str, Array], quieted: Mapping[str, Callable[[], Tensor]], name: str) -> Array | None:
    """That of what the linear takes, once its inputs are quieter."""
    moment = moments.get(name)
    if moment is None or name not in quieted:
        return moment
    factors = quieted[name]().numpy()
    quieter: Array = moment / factors / factors[:, None]
    return quieter


def _give_value(part: nn.Module, name: str, made: nn.Parameter, *, table: bool) -> None:
    """Read a parameter; a table becomes a module of the same name."""
    if table:
        delattr(part, name)
        setattr(part, name, torch_tables.rounded(value(made)))
    else:
        part.register_parameter(name, nn.Parameter(value(made), requires_grad=False))


def _round(linear: Linear, path: str, wanted: Grid, mind: Callable[[str], Array | None]) -> str | None:
    """Round the weight of the linear at `path`; why not as wanted, if so."""
    name = f"{path}.weight"
    grid, reason = grid_for(name, linear.weight.shape[1], wanted)
    moment = mind(name) if grid.group else None
    if grid.group and moment is not None:
        compensate(linear, grid.group, moment, grid.round)
    else:
        grid.round(linear)
    return reason


def grid_for(name: str, inputs: int, wanted: Grid) -> tuple[Grid, str | None]:
    """How the weight `name` of a linear is stored; why not as wanted, if so."""
    fitting = wanted.fitting(inputs)
    reason = LOUD if name == HEAD else SMALL if ADAPTER.search(name) else None if fitting else UNEVEN
    return (fitting if fitting and not reason else CHANNELS), reason


def _pattern(path: str, name: str) -> str:
    """The parameter's name for all layers at once."""
    return re.sub(r"\.\d+\.", ".*.", f"{path}.{name}".removeprefix("."))
