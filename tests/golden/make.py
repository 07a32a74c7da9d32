"""Writes austen.safetensors: what the `rwkv` package does with the bundled model. Run: python -m tests.golden.make

tokens (32,) int64:       bytes of the held-out text, id = byte + 1
logits (32, 257) float32: after each token
blocks.*:                 the state after the last token, of the first and the last layer
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from exporter.bundled import HELDOUT, MODEL
from runtimes.contract import Array
from tests.oracle import Oracle

FILE = Path(__file__).with_name("austen.safetensors")
START, COUNT = 10_000, 32
LAYERS = ("blocks.0.", "blocks.3.")


def record() -> dict[str, Array]:
    """The tensors of the file."""
    tokens = [byte + 1 for byte in HELDOUT.read_bytes()[START : START + COUNT]]
    trace = Oracle(torch.load(MODEL, weights_only=True), "7").trace(tokens)
    states = {name: array[-1] for name, array in trace.states.items() if name.startswith(LAYERS)}
    return {"tokens": np.array(tokens), "logits": trace.logits, **states}


def checkpoint_hash() -> str:
    """SHA-256 of the bundled checkpoint."""
    return hashlib.sha256(MODEL.read_bytes()).hexdigest()


if __name__ == "__main__":
    save_file(record(), FILE, metadata={"checkpoint_sha256": checkpoint_hash(), "rwkv": version("rwkv")})
