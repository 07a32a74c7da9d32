"""Random checkpoints of every version in BlinkDL names, scaled so that each tensor moves the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from exporter import bundled, versions
from exporter.synth import draw

VERSIONS = tuple(versions.by_version())
WRITTEN = ("4", "5.0", "5.1", "5.2", "6", "7", "7a")  # what this file says itself; of others it asks their layout
RANKS = {"maa": 7, "decay": 11, "w": 9, "a": 10, "v": 6, "g": 13}  # no two alike, so a swap cannot go unseen
SHAPES: dict[str, dict[str, Any]] = {
    "3x32": {"layers": 3, "width": 96, "head_size": 32, "vocab": 101, "ffn": 240},
    "8x8": {"layers": 2, "width": 64, "head_size": 8, "vocab": 257, "ffn": 200},
    "2x13": {"layers": 2, "width": 26, "head_size": 13, "vocab": 33, "ffn": 91},
}  # heads x head size
DEEP = 32  # 7a's deep embedding rows are 32 x 32 in all code that runs it

Tensors = dict[str, torch.Tensor]


def case(version: str, shape: str = "3x32", steps: int = 64) -> tuple[Tensors, list[int]]:
    """A random checkpoint of one of SHAPES, and tokens for it."""
    weights = random_checkpoint(version, **SHAPES[shape], seed=1)
    generator = torch.Generator().manual_seed(7)
    return weights, torch.randint(SHAPES[shape]["vocab"], (steps,), generator=generator).tolist()


class Dice:
    """One seeded source of float32 tensors."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        """Gaussian."""
        return torch.randn(shape, generator=self._generator) * std + mean

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        """Uniform in [low, high)."""
        return torch.rand(shape, generator=self._generator) * (high - low) + low

    def linear(self, out: int, into: int, gain: float = 1.0) -> torch.Tensor:
        """(out, in) that keeps a unit-variance input at standard deviation `gain`."""
        return self.normal(out, into, std=gain / into**0.5)

    def vector(self, low: float, high: float, width: int) -> torch.Tensor:
        """(1, 1, width), uniform."""
        return self.uniform(low, high, 1, 1, width)


def random_checkpoint(
    version: str,
    *,
    layers: int,
    width: int,
    head_size: int,
    vocab: int,
    ffn: int | None = None,
    ranks: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Tensors:
    """Weights of `version`; `ffn` is 2.5 times the width unless told, `ranks` override RANKS by their names."""
    dice, ffn, heads = Dice(seed), ffn or width * 5 // 2, width // head_size
    ranks = RANKS | dict(ranks or {})
    if version not in WRITTEN:
        sizes = {"layers": layers, "width": width, "head_size": head_size, "vocab": vocab}
        return from_layout(dice, version, sizes, ffn, ranks)
    out = {"emb.weight": dice.normal(vocab, width), "head.weight": dice.linear(vocab, width)}
    for name in ("blocks.0.ln0", "ln_out"):
        out |= scoped(name, norm(dice, width))
    for i in range(layers):
        for name in ("ln1", "ln2"):
            out |= scoped(f"blocks.{i}.{name}", norm(dice, width))
        out |= scoped(f"blocks.{i}.att", time_mix(dice, version, i, width, heads, ranks))
        out |= scoped(f"blocks.{i}.ffn", channel_mix(dice, version, width, ffn, vocab))
    return out


def from_layout(dice: Dice, version: str, sizes: Mapping[str, int], ffn: int, ranks: Mapping[str, int]) -> Tensors:
    """What `synth` would draw, in these sizes, its vectors shaken so that none is constant."""
    file = versions.load(version)
    d = file.dimensions(version, **sizes)
    own = {name: ranks.get(name, rank) for name, rank in d.ranks.items()}
    layout = file.layout(version, replace(d, ffn=ffn, ranks=own))
    out = {name: draw(name, entry, 0) for name, entry in layout.items() if entry.official and not entry.ignored}
    return {
        name: tensor + dice.normal(*tensor.shape, std=0.2) if max(tensor.shape) == tensor.numel() else tensor
        for name, tensor in out.items()
    }


def scoped(scope: str, tensors: Tensors) -> Tensors:
    """The tensors with `scope.` before their names."""
    return {f"{scope}.{name}": tensor for name, tensor in tensors.items()}


def norm(dice: Dice, width: int) -> Tensors:
    """Weights away from one, biases away from zero."""
    return {"weight": dice.normal(width, std=0.2, mean=1.0), "bias": dice.normal(width, std=0.2)}


def time_mix(dice: Dice, version: str, layer: int, width: int, heads: int, ranks: Mapping[str, int]) -> Tensors:
    """The tensors of one block's "att"."""
    out = {f"{name}.weight": dice.linear(width, width) for name in ("receptance", "key", "value", "output")}
    if version != "4":
        out |= scoped("ln_x", norm(dice, width))
        # heads from loud to faint: the variance of the faintest is small enough for the norm's eps to matter
        out["value.weight"] *= torch.logspace(0, -1.5, heads).repeat_interleave(width // heads)[:, None]
    if version in ("5.1", "5.2", "6"):
        out["gate.weight"] = dice.linear(width, width)
    if version == "6":
        return out | time_mix_6(dice, width, heads, ranks)
    if version in ("7", "7a"):
        return out | time_mix_7(dice, layer, width, heads, ranks)
    out |= {f"time_mix_{n}": dice.vector(0, 1, width) for n in ("kvr" if version in ("4", "5.0") else "kvrg")}
    shape = {"4": (width,), "5.0": (heads,), "5.1": (heads,)}.get(version, (heads, width // heads))
    out["time_decay"] = dice.uniform(-5, 1.5, *shape)  # decays exp(-exp(.)) from 0.99 to 0.01
    out["time_faaaa" if version == "5.2" else "time_first"] = dice.normal(*shape, std=0.7)
    return out


def time_mix_6(dice: Dice, width: int, heads: int, ranks: Mapping[str, int]) -> Tensors:
    """What 6 has beside the five projections and ln_x."""
    out = {f"time_maa_{n}": dice.vector(0, 1, width) for n in "xwkvrg"}
    mix, decay = ranks["maa"], ranks["decay"]
    out["time_maa_w1"] = dice.normal(width, 5 * mix, std=width**-0.5)
    out["time_maa_w2"] = dice.normal(5, mix, width, std=0.3 * mix**-0.5)
    out["time_decay"] = dice.vector(-5, 1, width)
    out["time_decay_w1"] = dice.normal(width, decay, std=width**-0.5)
    out["time_decay_w2"] = dice.normal(decay, width, std=decay**-0.5)
    out["time_faaaa"] = dice.normal(heads, width // heads, std=0.7)
    return out


def time_mix_7(dice: Dice, layer: int, width: int, heads: int, ranks: Mapping[str, int]) -> Tensors:
    """What 7 has beside the four projections and ln_x; layer 0 has no v0, v1, v2."""
    out = {f"x_{n}": dice.vector(0, 1, width) for n in "rwkvag"}
    for n in "wag" if layer == 0 else "wavg":
        out[f"{n}1"] = dice.normal(width, ranks[n], std=width**-0.5)
        out[f"{n}2"] = dice.normal(ranks[n], width, std=1.5 * ranks[n] ** -0.5)
        if n != "g":
            out[f"{n}0"] = dice.vector(-6, 3, width) if n == "w" else dice.vector(-1, 1, width)
    out["k_k"] = dice.vector(0.3, 1.5, width)
    out["k_a"] = dice.vector(0, 1.2, width)
    out["r_k"] = dice.normal(heads, width // heads, std=0.3)
    return out


def channel_mix(dice: Dice, version: str, width: int, ffn: int, vocab: int) -> Tensors:
    """The tensors of one block's "ffn"."""
    out = {"key.weight": dice.linear(ffn, width), "value.weight": dice.linear(width, ffn)}
    if version in ("7", "7a"):
        out["x_k"] = dice.vector(0, 1, width)
    else:
        out["receptance.weight"] = dice.linear(width, width)
        out |= {f"time_{'maa' if version == '6' else 'mix'}_{n}": dice.vector(0, 1, width) for n in "kr"}
    if version == "7a":
        out["s_emb.weight"] = dice.normal(vocab, DEEP * DEEP, std=DEEP**-0.5)
        out["s_emb_x.weight"] = dice.linear(DEEP * DEEP, width, gain=DEEP**-0.5)
        out["s1"] = dice.normal(width, DEEP, std=width**-0.5)
        out["s2"] = dice.normal(DEEP, ffn, std=DEEP**-0.5)
        out["s0"] = dice.vector(0.5, 1.5, ffn)
    return out


def loud(folder: Path) -> Path:
    """A trained model, the same function with one feed-forward channel a layer a thousand times louder."""
    stored = torch.load(bundled.SIBLINGS["4"], weights_only=True)
    for layer in range(2):
        key, value = (stored[f"blocks.{layer}.ffn.{name}.weight"].float() for name in ("key", "value"))
        key[layer] *= 32
        value[:, layer] /= 1024
        stored |= {f"blocks.{layer}.ffn.key.weight": key, f"blocks.{layer}.ffn.value.weight": value}
    torch.save(stored, folder / "loud.pth")
    return folder / "loud.pth"
