"""Frames that the agent gets, and its answers to them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from runtimes.agent import frames
from runtimes.agent.frames import Frame, FrameError

REFUSALS = (FrameError,)


def packed(frame: Frame) -> bytes:
    """As it is sent."""
    stream = io.BytesIO()
    frames.write(stream, frame)
    return stream.getvalue()


def seeds(folder: Path) -> Iterator[bytes]:
    yield packed(Frame({"ask": "step", "token": 3, "state": 1, "drop": [1, 2]}))
    yield packed(Frame({"ask": "set_state"}, {"wkv": np.ones((2, 3), np.float16), "shift": np.ones(4, np.int64)}))


def read(data: bytes, folder: Path) -> None:
    stream = io.BytesIO(data)
    while stream.tell() < len(data):
        frames.read(stream)
