"""torch.export archives: the check that comes before torch loads one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from runtimes.backends import eager


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(2, 2)

    def forward(self, state: Tensor) -> Tensor:
        return self.mix(state)


def seeds(folder: Path) -> Iterator[bytes]:
    stream = io.BytesIO()
    torch.export.save(torch.export.export(Step().eval(), (torch.zeros(1, 2),)), stream)
    yield stream.getvalue()


def read(data: bytes, folder: Path) -> None:
    path = folder / "decode.pt2"
    path.write_bytes(data)
    eager.refuse_code(path)
