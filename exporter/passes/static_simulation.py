"""Matrices with one scale an output between activations on one even grid, as NPUs take them; it exports nothing."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from exporter.simulation import Matrix, Spread, Table

LIMITS = {8: (-127, 127), 4: (-8, 7)}
"""The least and the largest step by bits, as ONNX Runtime's quantiser chooses them."""


class StaticSimulation:
    """Weights of `bits`, symmetric; what goes in and comes out in 16 bits between what a calibration text gave."""

    says = (
        "weights rounded to nearest, what products take and give in 16 bits between the least and the largest value "
        "of a calibration text; the rest, which an NPU computes in float16, in float32"
    )
    wide = 2
    balanced = False
    spreads = True

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def matrix(self, name: str, weight: Tensor, bias: Tensor | None, spread: Spread | None) -> Matrix | None:
        """All steps span twice the largest magnitude of an output; raises ValueError without a spread."""
        if spread is None:
            raise ValueError(f"the spread of {name} is not known")
        low, high = LIMITS[self.bits]
        scales = 2 * weight.abs().amax(1, keepdim=True) / (high - low)
        scales[scales == 0] = 1  # values of an output of zeros are zeros at any scale
        rounded = (weight / scales).round().clamp(low, high) * scales
        size = weight.numel() * self.bits // 8 + 4 * len(weight)
        return Matrix(f"{self.bits} bits, a scale for each output", size, partial(_product, rounded, bias, spread))

    def table(self, name: str, values: Tensor) -> Table | None:
        """Rows are looked up outside, and stay as they are."""
        return None


def _product(weight: Tensor, bias: Tensor | None, spread: Spread, x: Tensor) -> Tensor:
    return _gridded(torch.nn.functional.linear(_gridded(x, spread.taken), weight, bias), spread.given)


def _gridded(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """To nearest of 65536 even steps between `bounds`, which include zero; beyond them to the bound."""
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    step = (high - low) / 65535 or 1.0
    zero = round(-low / step)
    return ((x / step).round() + zero).clamp(0, 65535).sub(zero).mul(step)
