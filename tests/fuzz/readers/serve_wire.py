"""What a page posts: answers to commands, and what it tells of its device; the first byte says which."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from runtimes.contract import TensorSpec
from runtimes.schema import SchemaError
from validation.serve import device, wire

REFUSALS = (SchemaError,)
FACTS = {
    "browser": "Chromium", "version": "156", "system": "Linux", "model": "", "architecture": "x86", "cores": 4,
    "memory": 8, "isolated": True, "no_adapter": "", "webnn": {"cpu": ""},
    "adapter": {
        "vendor": "a", "architecture": "b", "description": "c", "software": True, "half": False, "max_buffer": 1
    },
}  # fmt: skip


def seeds(folder: Path) -> Iterator[bytes]:
    opened = {"threads": 2, "nodes": {"CPU": 3}, "devices": ["cpu"]}
    yield b"a" + wire.pack({"seq": 1, "seconds": [0.1], "opened": opened})
    yield b"a" + wire.pack({"seq": 1, "logits": "float32"}, np.ones(7, np.float32).tobytes())
    yield b"d" + json.dumps(FACTS).encode()


def read(data: bytes, folder: Path) -> None:
    if data[:1] == b"d":
        _device(wire.parse(data[1:]))
        return
    answer = wire.unpack(data[1:])
    if answer.logits:
        wire.logits(answer, 7)
    wire.tensors(answer.blob, [TensorSpec("wkv", (1, 7), "float32", ("a", "b"), 0.0)])


def _device(document: dict[str, object]) -> None:
    found = device.read(document)
    assert found.machine() and found.name is not None
