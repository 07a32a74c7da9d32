"""Checks a checkpoint against a version's layout and holds the random fills of official training; reads no values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from exporter.contract import Dimensions, Entry, Fill, Layout, Weights
from runtimes.errors import BadCheckpoint

TUNED_STATE = re.compile(r"blocks\.\d+\.att\.time_state$")


def normal(std: float) -> Fill:
    """Gaussian around zero."""
    return lambda generator, shape: torch.randn(shape, generator=generator) * std


def uniform(low: float, high: float) -> Fill:
    """Uniform in [low, high)."""
    return lambda generator, shape: torch.rand(shape, generator=generator) * (high - low) + low


def linear(fan_in: int, gain: float = 1.0) -> Fill:
    """Gaussian of std gain / sqrt(fan_in): keeps a unit-variance input at variance gain^2."""
    return normal(gain / math.sqrt(fan_in))


def full(value: float) -> Fill:
    """A constant."""
    return lambda _, shape: torch.full(shape, value)


def ramp(low: float, high: float, power: float) -> Fill:
    """low + (high - low) * u^power, u running from 0 to 1 over the channels: the shape of trained decays."""

    def fill(_: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        u = torch.linspace(0.0, 1.0, math.prod(shape))
        return (low + (high - low) * u**power).reshape(shape)

    return fill


def common(d: Dimensions) -> dict[str, Entry]:
    """The tensors of every version: embedding, head and norms."""
    entries = {
        "emb.weight": Entry((d.vocab, d.width), normal(0.02)),
        "blocks.0.ln0.weight": Entry((d.width,), full(1.0), optional=True),
        "blocks.0.ln0.bias": Entry((d.width,), full(0.0), optional=True),
        "ln_out.weight": Entry((d.width,), full(1.0)),
        "ln_out.bias": Entry((d.width,), full(0.0)),
        "head.weight": Entry((d.vocab, d.width), linear(d.width)),
        "head.bias": Entry((d.vocab,), full(0.0), optional=True, official=False),
    }
    for i in range(d.layers):
        for norm in ("ln1", "ln2"):
            entries[f"blocks.{i}.{norm}.weight"] = Entry((d.width,), full(1.0))
            entries[f"blocks.{i}.{norm}.bias"] = Entry((d.width,), full(0.0))
    return entries


def square(d: Dimensions, *names: str, gain: float = 1.0) -> dict[str, Entry]:
    """Weights (C, C) of the linears `names`; "output" may have a bias."""
    entries = {f"{name}.weight": Entry((d.width, d.width), linear(d.width, gain)) for name in names}
    if "output" in names:
        entries["output.bias"] = Entry((d.width,), full(0.0), optional=True, official=False)
    return entries


def feed_forward(d: Dimensions) -> dict[str, Entry]:
    """key (F, C) and value (C, F) of the channel mix."""
    return {
        "key.weight": Entry((d.ffn, d.width), linear(d.width)),
        "value.weight": Entry((d.width, d.ffn), linear(d.ffn, 0.5)),
    }


def scoped(scope: str, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries with `scope.` before their names."""
    return {f"{scope}.{name}": entry for name, entry in entries.items()}


def count_layers(weights: Weights) -> int:
    """Number of blocks; raises BadCheckpoint where one is missing in between."""
    found = {int(match[1]) for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))}
    layers = max(found) + 1
    if absent := sorted(set(range(layers)) - found):
        raise BadCheckpoint(f"block {absent[0]} of {layers} is missing", hint="the checkpoint is incomplete")
    return layers


def shape(weights: Weights, name: str, rank: int) -> tuple[int, ...]:
    """Shape of a tensor whose sizes define the model; leading ones are dropped."""
    if name not in weights:
        raise BadCheckpoint(f"{name} is missing", hint="the checkpoint is incomplete")
    dims = tuple(weights[name].shape)
    while len(dims) > rank and dims[0] == 1:
        dims = dims[1:]
    if len(dims) != rank:
        raise BadCheckpoint(f"{name} has shape {tuple(weights[name].shape)}, expected {rank} axes")
    return dims


def heads(weights: Weights, name: str, width: int) -> tuple[int, int]:
    """(H, N) of a tensor that has a row for each head; raises BadCheckpoint unless the heads make up the width."""
    count, size = shape(weights, name, 2)
    if count * size != width:
        raise BadCheckpoint(f"{name} has {count} heads of {size}, which do not make up the width {width}")
    return count, size


def check(weights: Weights, layout: Layout, version: str) -> None:
    """Every tensor of the layout is there in its shape, axes of one aside, and nothing else is."""
    for name, entry in layout.items():
        if entry.ignored:
            continue
        if name not in weights:
            if not entry.optional:
                raise BadCheckpoint(f"{name} is missing from this RWKV-{version} checkpoint", hint="it is incomplete")
            continue
        found = tuple(weights[name].shape)
        if [n for n in found if n != 1] != [n for n in entry.shape if n != 1]:
            raise BadCheckpoint(f"{name} has shape {found}, expected {entry.shape}")
    for name in weights:
        if name not in layout and not TUNED_STATE.match(name):
            raise BadCheckpoint(
                f"{name} is not a tensor of RWKV-{version}",
                hint="the model has a part that this version does not describe; exporting it would drop that part",
            )
