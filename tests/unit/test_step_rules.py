"""A version whose step and spec are at odds is told so before anything is written, in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from exporter import versions
from exporter.contract import ModelSpec, Spelling
from exporter.models.layers import check_step
from runtimes.contract import TensorSpec
from tests.models import VERSIONS


def made(version: str) -> tuple[ModelSpec, nn.Module]:
    """Two layers on the meta device."""
    file = versions.load(version)
    layout = file.layout(version, file.dimensions(version, layers=2, width=32, head_size=16, vocab=8))
    weights = {name: torch.empty(entry.shape, device="meta") for name, entry in layout.items()}
    spec = file.spec(version, weights, 64e-5)
    return spec, file.build(spec, weights, Spelling())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_keeps_the_rules(version: str) -> None:
    check_step(*made(version))


State = tuple[TensorSpec, ...]
SHIFT = TensorSpec("blocks.1.ffn.shift", (1, 32), "float32", ("batch", "channel"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            lambda s: s[:1] + s[2:4] + s[5:],
            r"does not take the state .*0\.att\.shift \(1, 32\), blocks\.0\.ffn",
        ),
        (lambda s: (s[1], s[0], s[2], s[4], s[3], s[5]), r"does not take the state that the spec declares"),
        (lambda s: s[:-1], r"expected blocks\.1\.att\.shift: .*blocks\.0\.ffn"),
        (lambda s: (*s[:-1], replace(SHIFT, name="blocks.1.ffn.before")), r"expected blocks\.1\.ffn\.shift: .*before"),
        (lambda s: (*s[:-1], replace(SHIFT, axes=("channel",))), r"axes or fill .* expected blocks\.1\.ffn\.shift"),
        (lambda s: (*s[:-1], replace(SHIFT, fill=-torch.inf)), r"axes or fill .* expected blocks\.1\.ffn\.shift"),
        (lambda s: (*s[:-1], replace(SHIFT, shape=(1, 1))), r"returns a state tensor of shape \(1, 32\) where .*1, 1"),
    ],
    ids=["undeclared", "swapped", "one too few", "name", "axes", "infinite", "shape"],
)
def test_a_state_that_is_not_the_step_s_is_refused(wrong: Callable[[State], State], says: str) -> None:
    spec, step = made("7")
    with pytest.raises(TypeError, match=says):
        check_step(replace(spec, state=wrong(spec.state)), step)


@pytest.mark.parametrize("name", ["recurrence", "second"])
def test_tokens_are_linked_by_one_recurrence_a_block(name: str) -> None:
    spec, step = made("7")
    att = step.blocks[1].att
    setattr(att, name, nn.Identity() if name == "recurrence" else made("7")[1].blocks[0].att.recurrence)
    with pytest.raises(TypeError, match=r"a time mix holds one BlockRecurrence: expected .*found"):
        check_step(spec, step)
