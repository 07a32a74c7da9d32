"""The JSON files of a Hugging Face folder: config.json, then, after a NUL byte, the index of its weight files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save

from exporter.checkpoint import open_checkpoint
from tests.fuzz.readers.pth import TENSORS

PART = "model-00001-of-00001.safetensors"


def seeds(folder: Path) -> Iterator[bytes]:
    (folder / PART).write_bytes(save(TENSORS))
    config = {"model_type": "rwkv7", "tie_word_embeddings": True}
    index = {"metadata": {}, "weight_map": dict.fromkeys(TENSORS, PART)}
    yield json.dumps(config).encode() + b"\0" + json.dumps(index).encode()


def read(data: bytes, folder: Path) -> None:
    config, _, index = data.partition(b"\0")
    (folder / "config.json").write_bytes(config)
    (folder / "model.safetensors.index.json").write_bytes(index)
    checkpoint = open_checkpoint(folder)
    for name in checkpoint:
        checkpoint[name].float().sum()
