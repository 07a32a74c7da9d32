"""initial_state.npz of an artifact."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from runtimes.contract import Artifact
from runtimes.session import stored_initial_state
from tests.fuzz.readers.manifest import document

NAME = "initial_state.npz"


def seeds(folder: Path) -> Iterator[bytes]:
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, wkv=np.ones((1, 4, 4), np.float32))
        yield stream.getvalue()


def read(data: bytes, folder: Path) -> None:
    (folder / NAME).write_bytes(data)
    stored_initial_state(Artifact(folder, replace(document(folder), initial_state=NAME)))
