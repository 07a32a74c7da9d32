"""The training model computes the recurrence, its gradients, and the logits that independent code computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracle import Oracle
from training.model import CHUNK, DECAY, Rwkv7, Shape, wkv7


def loop_over_time(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    batch, heads, time, size = r.shape
    state, out = r.new_zeros(batch, heads, size, size), []  # (batch, head, value, key)
    for t in range(time):
        correction = state @ a[:, :, t, :, None] @ b[:, :, t, None, :]
        update = v[:, :, t, :, None] * k[:, :, t, None, :]
        state = state * log_w[:, :, t, None, :].exp() + correction + update
        out.append((state @ r[:, :, t, :, None])[..., 0])
    return torch.stack(out, 2)


@pytest.mark.parametrize("time", [CHUNK, 2 * CHUNK + 5])
@pytest.mark.parametrize("decay", [0.05, 1.0])
def test_chunked_recurrence_and_its_gradients_match_a_float64_loop(time: int, decay: float) -> None:
    generator = torch.Generator().manual_seed(time)
    r, k, v, removal, weight = (torch.randn(2, 2, time, 32, generator=generator) for _ in range(5))
    rate, speed = (torch.rand(2, 2, time, 32, generator=generator) for _ in range(2))
    removal = F.normalize(removal, dim=-1)
    log_w = DECAY * decay * (0.5 + 0.5 * speed)  # at decay 1, close to the fastest that the model can forget
    inputs = [x.requires_grad_() for x in (r, log_w, k, v, -removal, removal * rate)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    got, want = wkv7(*inputs), loop_over_time(*exact)
    pairs = [(got.detach(), want.detach())]
    pairs += zip(
        torch.autograd.grad((got * weight).sum(), inputs),
        torch.autograd.grad((want * weight).sum(), exact),
        strict=True,
    )
    for ours, theirs in pairs:
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 3e-6


def test_logits_match_the_rwkv_package() -> None:
    torch.manual_seed(3)
    model = Rwkv7(Shape(layers=3, width=64, ffn=96, vocab=50, head_size=32, rank=8, gate_rank=8)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        tokens = torch.randint(50, (1, 41))
        ours = model(tokens)[0].numpy()
    theirs = Oracle(model.state_dict(), "7").trace(tokens[0].tolist()).logits
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
