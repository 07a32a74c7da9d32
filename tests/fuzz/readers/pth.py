"""Checkpoints of torch.save: the zip file, and the format before it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import torch

from exporter.checkpoint import open_checkpoint

TENSORS = {"emb.weight": torch.ones(3, 2), "blocks.0.ln1.weight": torch.ones(2, dtype=torch.bfloat16)}


def seeds(folder: Path) -> Iterator[bytes]:
    for zipped in (True, False):
        stream = io.BytesIO()
        torch.save(TENSORS, stream, _use_new_zipfile_serialization=zipped)
        yield stream.getvalue()


def read(data: bytes, folder: Path) -> None:
    path = folder / "model.pth"
    path.write_bytes(data)
    checkpoint = open_checkpoint(path)
    for name in checkpoint:
        checkpoint[name].float().sum()
