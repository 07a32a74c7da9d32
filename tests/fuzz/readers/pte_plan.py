"""ExecuTorch programs, read where they lie: which delegates and operators they call."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn

from exporter.quiet import quiet
from runtimes.pte import plan


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.mix(state), state + token


def seeds(folder: Path) -> Iterator[bytes]:
    yield from programs()


@cache
def programs() -> tuple[bytes, ...]:
    """One that a delegate takes whole, and one of operators."""
    made = []
    for partitioner in ([XnnpackPartitioner()], []):
        with quiet():
            program = torch.export.export(Step().eval(), (torch.zeros(1, 4), torch.zeros(1, 4)))
            made.append(bytes(to_edge_transform_and_lower(program, partitioner=partitioner).to_executorch().buffer))
    return tuple(made)


def read(data: bytes, folder: Path) -> None:
    path = folder / "model.pte"
    path.write_bytes(data)
    plan.calls(path)
