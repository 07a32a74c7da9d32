"""Matrices as torch_quantise rounds them, computed with by torchao as ExecuTorch's kernels do; it exports nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exporter.models.layers import Linear
from exporter.passes import torch_tables
from exporter.passes.torch_quantise import Grid, grid_for
from exporter.simulation import Matrix, Spread, Table


class TorchSimulation:
    """A preset of torch_quantise."""

    says = "weights and activations as torchao rounds them in the exported program, a token at a time"
    wide = 4
    balanced = True
    spreads = False

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def matrix(self, name: str, weight: Tensor, bias: Tensor | None, spread: Spread | None) -> Matrix | None:
        """A linear that torchao has rounded."""
        grid, _ = grid_for(name, weight.shape[1], self.grid)
        made = (nn.Parameter(each.clone(), requires_grad=False) for each in (weight, bias) if each is not None)
        linear = Linear(*made)
        grid.round(linear)
        outputs, inputs = weight.shape
        scales = outputs * (inputs // grid.group * 2 if grid.group else 4)
        shared = f"each {grid.group} inputs" if grid.group else "each output"
        return Matrix(f"{grid.bits} bits, a scale for {shared}", weight.numel() * grid.bits // 8 + scales, linear)

    def table(self, name: str, values: Tensor) -> Table | None:
        """Every row of the table of 8 bits."""
        made = torch_tables.rounded(values)
        size = made.values.nbytes + made.scales.nbytes
        shared = f"each {values.shape[1] // made.scales.shape[1]} values of a row"
        return Table(f"8 bits, a scale for {shared}", size, made(torch.arange(len(values))))
