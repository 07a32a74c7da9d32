"""Checkpoints as .safetensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save

from exporter.checkpoint import open_checkpoint
from tests.fuzz.readers.pth import TENSORS


def seeds(folder: Path) -> Iterator[bytes]:
    yield save(TENSORS)
    yield save({f"model.layers.0.attn.{name}": tensor for name, tensor in TENSORS.items()}, {"format": "pt"})


def read(data: bytes, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(data)
    checkpoint = open_checkpoint(path)
    for name in checkpoint:
        checkpoint[name].float().sum()
