"""RWKV-4: a scalar recurrence per channel, kept in log space by a running maximum; no heads."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from exporter.contract import Dimensions, Entry, Layout, ModelSpec, Spelling, Weights
from exporter.models import layout as lay
from exporter.models.blocks import BlockRecurrence
from exporter.models.layers import (
    GatedChannelMix,
    TokenShift,
    complement,
    flat,
    project,
    shift_state,
    step_model,
)
from exporter.models.parameters import Take
from exporter.models.primitives import last
from runtimes.contract import TensorSpec

VERSIONS = ("4",)

MAXIMUM_START = -1e30  # the log-domain maximum of nothing yet


def matches(names: Collection[str]) -> str | None:
    """v4 is the version with time_first and no ln_x."""
    return "4" if "blocks.0.att.time_first" in names and "blocks.0.att.ln_x.weight" not in names else None


def dimensions(version: str, *, layers: int, width: int, head_size: int, vocab: int) -> Dimensions:
    """Official sizes: ffn 4x; v4 has no heads, the whole width is one."""
    return Dimensions(layers, width, width, 4 * width, vocab)


def layout(version: str, d: Dimensions) -> Layout:
    """Tensors and their fills, after RWKV-LM's RWKV-v4 initialisation, its zeros replaced by trained scales."""
    entries = lay.common(d)
    mix = Entry((1, 1, d.width), lay.uniform(0.0, 1.0))
    for i in range(d.layers):
        att = lay.square(d, "receptance", "key", "value", "output") | {
            "time_decay": Entry((d.width,), lay.ramp(-5.0, 3.0, 0.7 + 1.3 * i / max(d.layers - 1, 1))),
            "time_first": Entry((d.width,), lay.uniform(-1.7, -0.7)),
            **{f"time_mix_{name}": mix for name in "kvr"},
        }
        ffn = lay.feed_forward(d) | lay.square(d, "receptance") | {f"time_mix_{name}": mix for name in "kr"}
        entries |= lay.scoped(f"blocks.{i}.att", att) | lay.scoped(f"blocks.{i}.ffn", ffn)
    return entries


def spec(version: str, weights: Weights, ln_x_eps: float) -> ModelSpec:
    """Dimensions from the shapes; `ln_x_eps` has no meaning here."""
    vocab, width = lay.shape(weights, "emb.weight", 2)
    layers = lay.count_layers(weights)
    ffn, _ = lay.shape(weights, "blocks.0.ffn.key.weight", 2)
    lay.check(weights, layout(version, Dimensions(layers, width, width, ffn, vocab)), version)
    state = tuple(tensor for i in range(layers) for tensor in _state(i, width))
    return ModelSpec(version, layers, width, 1, width, vocab, ln_x_eps, state)


def _state(i: int, width: int) -> list[TensorSpec]:
    def channel(name: str, fill: float) -> TensorSpec:
        return TensorSpec(f"blocks.{i}.att.{name}", (1, width), "float32", ("batch", "channel"), fill)

    recurrence = [channel("aa", 0.0), channel("bb", 0.0), channel("pp", MAXIMUM_START)]
    return [shift_state(i, "att", width), *recurrence, shift_state(i, "ffn", width)]


def build(spec: ModelSpec, weights: Weights, spelling: Spelling) -> nn.Module:
    """The step module, parameters on the meta device."""

    def mixes(block: Take, i: int) -> tuple[nn.Module, nn.Module]:
        ffn = block.at("ffn")
        shift = TokenShift(**{name: ffn(f"time_mix_{name}", fn=complement) for name in "kr"})
        return TimeMix(block.at("att")), GatedChannelMix(ffn, shift)

    return step_model(spec, weights, spelling, mixes)


def growth(time_decay: Tensor) -> Tensor:
    """What the log-domain maximum loses a token: exp(time_decay)."""
    return torch.exp(time_decay.reshape(-1))


class TimeMix(nn.Module):
    """y = (sum e^k v) / (sum e^k) over decaying time, the current token weighted by the bonus u."""

    def __init__(self, take: Take) -> None:
        super().__init__()
        self.shift = TokenShift(**{name: take(f"time_mix_{name}", fn=complement) for name in "kvr"})
        names = ("receptance", "key", "value", "output")
        self.receptance, self.key, self.value, self.output = (project(take, name) for name in names)
        self.recurrence = Recurrence(take)

    def forward(
        self, x: Tensor, first: Tensor | None, shift: Tensor, aa: Tensor, bb: Tensor, pp: Tensor
    ) -> tuple[Tensor | None, ...]:
        """x (T, C); shift, aa, bb, pp (1, C) -> added (T, C), first, shift, aa, bb, pp."""
        xk, xv, xr = self.shift(x, shift)
        r, k, v = torch.sigmoid(self.receptance(xr)), self.key(xk), self.value(xv)
        y, aa, bb, pp = self.recurrence(k, v, aa, bb, pp)
        return self.output(r * y), first, last(x), aa, bb, pp


class Recurrence(BlockRecurrence):
    """(k, v, aa, bb, pp) -> (y, aa, bb, pp): k, v, y (T, C), the state (1, C).

    aa and bb are the sums of e^k v and e^k, both times e^-pp, pp being the largest exponent among them.
    """

    def __init__(self, take: Take) -> None:
        super().__init__(given=2, block=1)  # any number of tokens is solved at once
        self.decay, self.bonus = take("time_decay", fn=growth), take("time_first", fn=flat)

    def step(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """One token: the output reads with the bonus, the state then decays and takes k, v."""
        k, v, aa, bb, pp = tensors
        y = self.read(k, v, aa, bb, pp)
        decayed = pp - self.decay
        q = torch.maximum(decayed, k)
        old, new = torch.exp(decayed - q), torch.exp(k - q)
        return y, old * aa + new * v, old * bb + new, q

    def read(self, k: Tensor, v: Tensor, aa: Tensor, bb: Tensor, pp: Tensor) -> Tensor:
        """The outputs of tokens, each with the state before it, all (T, C)."""
        now = self.bonus + k
        q = torch.maximum(pp, now)
        old, new = torch.exp(pp - q), torch.exp(now - q)
        return (old * aa + new * v) / (old * bb + new)

    def solve(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """All states by doubling: the state first, then the tokens, and every sum reaches twice as far each round."""
        k, v, *_, aa, bb, pp = tensors
        p = torch.cat([pp, k], 0)  # (1 + T, C)
        sums = torch.stack([torch.cat([aa, v], 0), torch.cat([bb, torch.ones_like(k)], 0)], 0)  # (2, 1 + T, C)
        reach = 1
        while reach < p.shape[0]:
            far, near = p[:-reach] - self.decay * float(reach), p[reach:]
            q = torch.maximum(far, near)
            added = torch.exp(far - q) * sums[:, :-reach] + torch.exp(near - q) * sums[:, reach:]
            p, sums = torch.cat([p[:reach], q], 0), torch.cat([sums[:, :reach], added], 1)
            reach *= 2
        y = self.read(k, v, sums[0, :-1], sums[1, :-1], p[:-1])
        return y, last(sums[0]), last(sums[1]), last(p)
