"""Steps of a fixed number of tokens that take fewer, filled up, with a mask of those that count; of no version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from exporter.contract import Job, Option
from exporter.models.primitives import masking

MASK = "mask"
PREFILL = Option(
    "prefill",
    ("exact", "masked"),
    "exact",
    "with --prefill: functions that take exactly their number of tokens, or up to it with a mask of those that count",
)


USAGE = f"""A prefill function takes any number of tokens up to the one it is listed with. Fill what lacks with any
valid id, such as 0, and give `{MASK}` a one for each token of yours and a zero for each that fills up."""


def masked(job: Job, tokens: int) -> bool:
    """Whether the function of so many tokens takes a mask."""
    return tokens > 1 and job.options[PREFILL.name] == "masked"


@contextmanager
def taking_a_mask(step: nn.Module, *, wanted: bool) -> Iterator[None]:
    """Within the block the step takes a mask (T,) after the token ids: ones, then zeros for ids that only fill up."""
    own = step.forward

    def forward(tokens: Tensor, mask: Tensor, *tensors: Tensor) -> Any:
        with masking(mask):
            return own(tokens, *tensors)

    if not wanted:
        yield
        return
    step.forward = forward
    try:
        yield
    finally:
        del step.forward  # what hid the method of the class
