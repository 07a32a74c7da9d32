"""RWKV 4 to 7a in numpy, float64, one token at a time: the formulas themselves, sharing nothing with exporter/models.

Letters are the papers': r w k v a g, u for the bonus, S for the state of the heads. C is the width, H heads of N
channels, F the width of the channel mix, V the vocabulary. Matrices are stored (out, in), low-rank pairs (in, out).
"""

# ruff: noqa: N803, N806

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from runtimes.contract import Array, Placement, TensorSpec
from runtimes.errors import BadCheckpoint, WrongCall, did_you_mean
from runtimes.session import ExplicitSession, Tensors

Float = NDArray[np.float64]
Part = Mapping[str, Float]
"""Tensors of one part of a model, such as a block's "att", by their names inside it; vectors are flat."""
State = tuple[Float, ...]
"""Of one time mix; its first tensor is the input of the token before."""
Mixed = tuple[Float, State]
"""What a time mix returns: its output (C,), and its new state."""

PLACEMENT = Placement("float64:cpu", "float64:cpu")
TABLE = "emb.weight"  # the end of a table's name: one row a token is all that is read
NORM_EPS = 1e-5  # of every layer norm in official code
V7_DECAY = -math.exp(-0.5)  # bounds v7's w below by exp(-exp(-0.5)) = 0.545


def layer_norm(p: Part, x: Float) -> Float:
    """(C,) -> (C,)."""
    x = (x - x.mean()) / np.sqrt(x.var() + NORM_EPS)
    return x * p["weight"] + p["bias"]


def head_norm(p: Part, y: Float, eps: float) -> Float:
    """Group norm with one group a head: (H, N) -> (C,)."""
    y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + eps)
    return y.reshape(-1) * p["ln_x.weight"] + p["ln_x.bias"]


def lerp(x: Float, last: Float, amount: Float) -> Float:
    """The token shift of versions 4 and 5: `amount` of this token, the rest of the one before."""
    return x * amount + last * (1 - amount)


def sigmoid(x: Float) -> Float:
    """1 / (1 + exp(-x)), without overflow."""
    y: Float = expit(x)
    return y


def linear(p: Part, name: str, x: Float) -> Float:
    """A projection with its bias, where it has one."""
    y: Float = p[f"{name}.weight"] @ x
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def gate(p: Part, x: Float) -> Float:
    """silu of the gate's projection."""
    g = linear(p, "gate", x)
    return g * sigmoid(g)


def time_mix_4(p: Part, x: Float, state: State, _: float) -> Mixed:
    """A weighted mean of all v so far; aa / bb is that mean, both scaled by exp(-pp) against overflow."""
    last, aa, bb, pp = state
    r = sigmoid(linear(p, "receptance", lerp(x, last, p["time_mix_r"])))
    k = linear(p, "key", lerp(x, last, p["time_mix_k"]))
    v = linear(p, "value", lerp(x, last, p["time_mix_v"]))

    bonus = p["time_first"] + k
    q = np.maximum(pp, bonus)
    old, new = np.exp(pp - q), np.exp(bonus - q)
    y = (old * aa + new * v) / (old * bb + new)

    decayed = pp - np.exp(p["time_decay"])
    q = np.maximum(decayed, k)
    old, new = np.exp(decayed - q), np.exp(k - q)
    return linear(p, "output", r * y), (x, old * aa + new * v, old * bb + new, q)


def attend(r: Float, k: Float, v: Float, w: Float, u: Float, S: Float) -> tuple[Float, Float]:
    """Linear attention of 5 and 6: S is (H, key, value), read before it is updated; w and u are (H, 1) or (H, N)."""
    heads, size, _ = S.shape
    r, k, v = (c.reshape(heads, size) for c in (r, k, v))
    kv = k[:, :, None] * v[:, None, :]  # (H, key, value)
    y = np.einsum("hk,hkv->hv", r, u[:, :, None] * kv + S)
    return y, w[:, :, None] * S + kv


def time_mix_5(p: Part, x: Float, state: State, u: Float, eps: float) -> Mixed:
    """What 5.0, 5.1 and 5.2 share, before gate and output; decay and bonus are (H,) or (H, N)."""
    last, S = state
    r = linear(p, "receptance", lerp(x, last, p["time_mix_r"]))
    k = linear(p, "key", lerp(x, last, p["time_mix_k"]))
    v = linear(p, "value", lerp(x, last, p["time_mix_v"]))
    w = np.exp(-np.exp(p["time_decay"]))
    y, S = attend(r, k, v, w.reshape(len(S), -1), u.reshape(len(S), -1), S)
    return head_norm(p, y, eps), (x, S)


def time_mix_5_0(p: Part, x: Float, state: State, eps: float) -> Mixed:
    """One decay and one bonus a head, no gate."""
    y, new = time_mix_5(p, x, state, np.exp(p["time_first"]), eps)
    return linear(p, "output", y), new


def time_mix_5_1(p: Part, x: Float, state: State, eps: float) -> Mixed:
    """5.0 with a gate."""
    y, new = time_mix_5(p, x, state, np.exp(p["time_first"]), eps)
    g = gate(p, lerp(x, state[0], p["time_mix_g"]))
    return linear(p, "output", y * g), new


def time_mix_5_2(p: Part, x: Float, state: State, eps: float) -> Mixed:
    """5.1 with decay and bonus for each channel of the key, the bonus used as it is stored."""
    y, new = time_mix_5(p, x, state, p["time_faaaa"], eps)
    g = gate(p, lerp(x, state[0], p["time_mix_g"]))
    return linear(p, "output", y * g), new


def time_mix_6(p: Part, x: Float, state: State, eps: float) -> Mixed:
    """5.2 whose decay and shift amounts depend on the input."""
    last, S = state
    sx = last - x
    low = np.tanh((x + sx * p["time_maa_x"]) @ p["time_maa_w1"]).reshape(5, 1, -1)
    m = (low @ p["time_maa_w2"])[:, 0]  # (5, C)
    xw, xk, xv, xr, xg = (x + sx * (p[f"time_maa_{n}"] + m[i]) for i, n in enumerate("wkvrg"))

    r, k, v = linear(p, "receptance", xr), linear(p, "key", xk), linear(p, "value", xv)
    w = np.exp(-np.exp(p["time_decay"] + np.tanh(xw @ p["time_decay_w1"]) @ p["time_decay_w2"]))
    y, S = attend(r, k, v, w.reshape(len(S), -1), p["time_faaaa"], S)
    g = gate(p, xg)
    return linear(p, "output", head_norm(p, y, eps) * g), (x, S)


def time_mix_7(p: Part, x: Float, state: State, eps: float, v_first: Float | None) -> tuple[Float, State, Float]:
    """The delta rule: S is (H, value, key), read after it is updated. Returns v_first too.

    v_first: v of layer 0 for the same token; None in layer 0, where v0, v1 and v2 are absent or dummies.
    """
    last, S = state
    sx = last - x
    xr, xw, xk, xv, xa, xg = (x + sx * p[f"x_{n}"] for n in "rwkvag")
    r, k, v = linear(p, "receptance", xr), linear(p, "key", xk), linear(p, "value", xv)
    w = np.exp(V7_DECAY * sigmoid(p["w0"] + np.tanh(xw @ p["w1"]) @ p["w2"]))
    a = sigmoid(p["a0"] + xa @ p["a1"] @ p["a2"])
    g = sigmoid(xg @ p["g1"]) @ p["g2"]
    kk = k * p["k_k"]
    k = k * (1 + (a - 1) * p["k_a"])
    if v_first is None:
        v_first = v
    else:
        v = v + (v_first - v) * sigmoid(p["v0"] + xv @ p["v1"] @ p["v2"])

    r, w, k, v, a, kk = (c.reshape(S.shape[:2]) for c in (r, w, k, v, a, kk))
    kk = kk / np.maximum(np.linalg.norm(kk, axis=1, keepdims=True), 1e-12)
    removed = np.einsum("hvk,hk->hv", S, kk)
    S = S * w[:, None, :] - removed[:, :, None] * (kk * a)[:, None, :] + v[:, :, None] * k[:, None, :]
    y = head_norm(p, np.einsum("hvk,hk->hv", S, r), eps)
    y = y + ((r * k * p["r_k"]).sum(1, keepdims=True) * v).reshape(-1)
    return linear(p, "output", y * g), (x, S), v_first


def channel_mix_4(p: Part, x: Float, last: Float) -> Float:
    """Of versions 4 and 5."""
    k = np.maximum(linear(p, "key", lerp(x, last, p["time_mix_k"])), 0) ** 2
    return sigmoid(linear(p, "receptance", lerp(x, last, p["time_mix_r"]))) * linear(p, "value", k)


def channel_mix_6(p: Part, x: Float, last: Float) -> Float:
    """channel_mix_4 with amounts of the token before."""
    k = np.maximum(linear(p, "key", x + (last - x) * p["time_maa_k"]), 0) ** 2
    return sigmoid(linear(p, "receptance", x + (last - x) * p["time_maa_r"])) * linear(p, "value", k)


def channel_mix_7(p: Part, x: Float, last: Float) -> Float:
    """No receptance."""
    k = np.maximum(linear(p, "key", x + (last - x) * p["x_k"]), 0) ** 2
    return linear(p, "value", k)


def channel_mix_7a(p: Part, x: Float, last: Float, e: Float, row: Float) -> Float:
    """channel_mix_7 with hidden channels scaled by a low-rank map that the token chooses.

    e: the input of block 0, which depends on the token only; row: this token's row of s_emb
    """
    k = np.maximum(linear(p, "key", x + (last - x) * p["x_k"]), 0) ** 2
    table = (row + p["s_emb_x.weight"] @ e).reshape(p["s1"].shape[1], p["s2"].shape[0])
    return linear(p, "value", k * (x @ p["s1"] @ table @ p["s2"] + p["s0"]))


@dataclass(frozen=True)
class Version:
    """What tells a version from the others.

    time_mix:    (part, x, state, eps, v_first) -> (output, new state, v_first)
    channel_mix: (part, x, last, e, row of s_emb or None) -> output
    heads:       the tensor of a time mix with one row a head; "" where there are no heads
    matrix:      axes of a head's state
    """

    time_mix: Callable[[Part, Float, State, float, Float | None], tuple[Float, State, Float | None]]
    channel_mix: Callable[[Part, Float, Float, Float, Any], Float]
    heads: str = ""
    matrix: tuple[str, str] = ("key", "value")


def _alone(mix: Callable[[Part, Float, State, float], Mixed]) -> Any:
    """A time mix that hands nothing to later layers."""
    return lambda p, x, state, eps, v_first: (*mix(p, x, state, eps), v_first)


def _plain(mix: Callable[[Part, Float, Float], Float]) -> Any:
    """A channel mix that takes no notice of the token."""
    return lambda p, x, last, e, row: mix(p, x, last)


VERSIONS = {
    "4": Version(_alone(time_mix_4), _plain(channel_mix_4)),
    "5.0": Version(_alone(time_mix_5_0), _plain(channel_mix_4), "time_decay"),
    "5.1": Version(_alone(time_mix_5_1), _plain(channel_mix_4), "time_decay"),
    "5.2": Version(_alone(time_mix_5_2), _plain(channel_mix_4), "time_faaaa"),
    "6": Version(_alone(time_mix_6), _plain(channel_mix_6), "time_faaaa"),
    "7": Version(time_mix_7, _plain(channel_mix_7), "r_k", ("value", "key")),
    "7a": Version(time_mix_7, channel_mix_7a, "r_k", ("value", "key")),
}


def state_specs(version: str, layers: int, width: int, heads: int) -> tuple[TensorSpec, ...]:
    """Every state tensor in float64, layer by layer; `heads` plays no part where a version has none."""
    known, channels, specs = VERSIONS[version], ("batch", "channel"), []
    for i in range(layers):
        specs.append(TensorSpec(f"blocks.{i}.att.shift", (1, width), "float64", channels))
        if known.heads:
            shape = (1, heads, width // heads, width // heads)
            specs.append(TensorSpec(f"blocks.{i}.att.wkv", shape, "float64", ("batch", "head", *known.matrix)))
        else:
            for name, fill in (("aa", 0.0), ("bb", 0.0), ("pp", -1e30)):
                specs.append(TensorSpec(f"blocks.{i}.att.{name}", (1, width), "float64", channels, fill))
        specs.append(TensorSpec(f"blocks.{i}.ffn.shift", (1, width), "float64", channels))
    return tuple(specs)


class Scope(dict[str, Float]):
    """The tensors of a checkpoint whose names start with `scope.`; a lookup that fails names the whole tensor."""

    def __init__(self, weights: Mapping[str, Any], scope: str) -> None:
        full = [name for name in weights if name.startswith(f"{scope}.") and not name.endswith(TABLE)]
        super().__init__({name.removeprefix(f"{scope}."): to_float(weights[name]) for name in full})
        self._scope = scope

    def __missing__(self, name: str) -> Float:
        raise BadCheckpoint(f"{self._scope}.{name} is missing", hint="the checkpoint is not whole or not this version")


def to_float(tensor: Any) -> Float:
    """A torch tensor or an array in float64; a vector stored as (1, 1, C) becomes (C,)."""
    array = np.asarray(tensor if isinstance(tensor, np.ndarray) else tensor.detach().double().numpy(), np.float64)
    return array.reshape(-1) if array.shape[:2] == (1, 1) else array


class Reference(ExplicitSession):
    """A checkpoint as a session in float64; holds 8 bytes for each parameter outside the embedding tables.

    weights:  BlinkDL names -> torch tensors or numpy arrays of any float type; embeddings are read from it row by row
    version:  "4", "5.0", "5.1", "5.2", "6", "7" or "7a"
    ln_x_eps: of the norm over heads; 64e-5 in official inference code, plays no part in version 4
    initial:  tuned initial state tensors by name, shaped as read_state gives them; the others start at their fill

    Raises WrongCall for an unknown version or state name, BadCheckpoint for a tensor the version needs and lacks.
    """

    def __init__(
        self,
        weights: Mapping[str, Any],
        version: str,
        *,
        ln_x_eps: float = 64e-5,
        initial: Mapping[str, Array] | None = None,
    ) -> None:
        if version not in VERSIONS:
            raise WrongCall(f"unknown RWKV version {version!r}", hint=did_you_mean(version, list(VERSIONS)))
        self._version, self._eps = VERSIONS[version], ln_x_eps
        self._tables = {name: weights[name] for name in weights if name.endswith(TABLE)}
        layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        parts = ("ln1", "att", "ln2", "ffn")
        self._blocks = [{part: Scope(weights, f"blocks.{i}.{part}") for part in parts} for i in range(layers)]
        self._ln0, self._ln_out, self._head = (Scope(weights, part) for part in ("blocks.0.ln0", "ln_out", "head"))
        vocab, width = self._head["weight"].shape
        heads = len(self._blocks[0]["att"][self._version.heads]) if self._version.heads else 0
        specs = state_specs(version, layers, width, heads)
        names = [spec.name for spec in specs]
        if unknown := sorted(set(initial or {}).difference(names)):
            raise WrongCall(f"unknown state tensor {unknown[0]!r}", hint=did_you_mean(unknown[0], names))
        super().__init__(specs, initial or {}, vocab, {1: self._run}, lambda: PLACEMENT)

    def _run(self, tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        token, size = int(tokens[0]), len(state) // len(self._blocks)
        x = to_float(self._tables["emb.weight"][token])
        x = e = layer_norm(self._ln0, x) if self._ln0 else x
        new: list[Float] = []
        v_first = None
        for i, p in enumerate(self._blocks):
            *s, last = (tensor[0] for tensor in state[i * size : (i + 1) * size])
            xx = layer_norm(p["ln1"], x)
            y, mixed, v_first = self._version.time_mix(p["att"], xx, tuple(s), self._eps, v_first)
            x = x + y
            xx = layer_norm(p["ln2"], x)
            x = x + self._version.channel_mix(p["ffn"], xx, last, e, self._row(i, token))
            new += [*mixed, xx]
        logits = self._head["weight"] @ layer_norm(self._ln_out, x) + self._head.get("bias", np.zeros(1))
        return logits, tuple(tensor[None] for tensor in new)

    def _row(self, layer: int, token: int) -> Float | None:
        """The token's row of the layer's own table, where it has one."""
        table = self._tables.get(f"blocks.{layer}.ffn.s_emb.weight")
        return None if table is None else to_float(table[token])
