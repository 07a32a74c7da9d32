"""The training models compute the recurrences, their gradients, and the logits that independent code computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracle import Oracle
from training.model import CHUNK, Shape
from training.train import MODELS
from training.v4 import wkv4
from training.v5 import wkv5
from training.v7 import DECAY, wkv7

TIMES = (3, CHUNK, 2 * CHUNK + 5)


def loop_4(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor) -> Tensor:
    above, below, out = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0]), []
    for t in range(k.shape[1]):
        now = (bonus + k[:, t]).exp()
        out.append((above + now * v[:, t]) / (below + now))
        above = above * (-decay).exp() + k[:, t].exp() * v[:, t]
        below = below * (-decay).exp() + k[:, t].exp()
    return torch.stack(out, 1)


def loop_5(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, u: Tensor) -> Tensor:
    batch, heads, time, size = r.shape
    state, out = r.new_zeros(batch, heads, size, size), []  # (batch, head, key, value)
    for t in range(time):
        outer = k[:, :, t, :, None] * v[:, :, t, None, :]
        out.append((r[:, :, t, None, :] @ (state + u.mT * outer))[..., 0, :])
        state = state * log_w[:, :, t, :, None].exp() + outer
    return torch.stack(out, 2)


def loop_7(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    batch, heads, time, size = r.shape
    state, out = r.new_zeros(batch, heads, size, size), []  # (batch, head, value, key)
    for t in range(time):
        correction = state @ a[:, :, t, :, None] @ b[:, :, t, None, :]
        update = v[:, :, t, :, None] * k[:, :, t, None, :]
        state = state * log_w[:, :, t, None, :].exp() + correction + update
        out.append((state @ r[:, :, t, :, None])[..., 0])
    return torch.stack(out, 2)


def largest_error(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    """Of the output and every gradient, relative to the largest value: ours in float32, theirs in float64."""
    inputs = [x.requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    got, want = ours(*inputs), theirs(*exact)
    weight = torch.linspace(-1.0, 1.0, got.numel()).view_as(got)
    pairs = [(got.detach(), want.detach())]
    pairs += zip(
        torch.autograd.grad((got * weight).sum(), inputs),
        torch.autograd.grad((want * weight).sum(), exact),
        strict=True,
    )
    return max(float((mine - yours).abs().max() / yours.abs().max()) for mine, yours in pairs)


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("fastest", [0.01, 3.0])
def test_version_4_matches_a_float64_loop(time: int, fastest: float) -> None:
    generator = torch.Generator().manual_seed(time)
    k, v = (torch.randn(2, time, 32, generator=generator) for _ in range(2))
    decay = fastest * torch.rand(32, generator=generator)
    bonus = torch.randn(32, generator=generator)
    assert largest_error(wkv4, loop_4, [4.0 * k, v, decay, bonus]) < 3e-6


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("fastest", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("per_token", [False, True])
def test_versions_5_and_6_match_a_float64_loop(time: int, fastest: float, per_token: bool) -> None:
    generator = torch.Generator().manual_seed(time)
    r, k, v = (torch.randn(2, 2, time, 32, generator=generator) for _ in range(3))
    log_w = -fastest * torch.rand(2 if per_token else 1, 2, time, 32, generator=generator)
    u = torch.randn(2, 1, 32, generator=generator)
    rounding = CHUNK * fastest * 2**-24  # of a chunk's summed log decays
    assert largest_error(wkv5, loop_5, [r, log_w, k, v, u]) < 3e-6 + rounding


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("decay", [0.05, 1.0])
def test_version_7_matches_a_float64_loop(time: int, decay: float) -> None:
    generator = torch.Generator().manual_seed(time)
    r, k, v, removal = (torch.randn(2, 2, time, 32, generator=generator) for _ in range(4))
    rate, speed = (torch.rand(2, 2, time, 32, generator=generator) for _ in range(2))
    removal = F.normalize(removal, dim=-1)
    log_w = DECAY * decay * (0.5 + 0.5 * speed)  # at decay 1, close to the fastest that the model can forget
    assert largest_error(wkv7, loop_7, [r, log_w, k, v, -removal, removal * rate]) < 3e-6


@pytest.mark.parametrize("version", MODELS)
def test_logits_match_the_rwkv_package(version: str) -> None:
    torch.manual_seed(3)
    shape = Shape(layers=3, width=64, ffn=96, vocab=50, head_size=32, rank=8, gate_rank=8)
    model = MODELS[version](shape).eval()
    weights = {name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights)
    with torch.no_grad():
        tokens = torch.randint(50, (1, 41))
        ours = model(tokens)[0].numpy()
    theirs = Oracle(weights, version).trace(tokens[0].tolist()).logits
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
