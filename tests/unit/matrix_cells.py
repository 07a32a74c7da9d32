"""Cells that cost nothing, and what a worker does with them; a file of its own, so that workers can import it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from validation.matrix.plan import Cell, Device, Work
from validation.outcome import Identity


def cell(name: str, log: Path, *, needs: str = "phone") -> Cell:
    """A cell whose worker writes into the folder `log`."""
    device = Device(name="a phone", needs=needs)
    identity = Identity(name, "m", "7", "onnx", "fp32", "ort:cpu", "")
    return Cell(device, log / name, "ort:cpu", "0" * 64, identity, Work())


def run(cell: Cell) -> str:
    """Leave a file with this process, when it began and when it ended; `deadly` kills its process the first time."""
    first = not list(cell.folder.parent.glob(f"{cell.folder.name}.*"))
    began = time.time()
    note = cell.folder.parent / f"{cell.folder.name}.{time.time_ns()}"
    note.touch()
    if cell.folder.name == "deadly" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    if cell.folder.name == "broken":
        raise ValueError("no such luck")
    time.sleep(0.2)
    note.write_text(f"{os.getpid()} {began} {time.time()}")
    return cell.folder.name
