"""The pickle in a torch file: the rest of the zip file is as torch wrote it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.readers import pth


def seeds(folder: Path) -> Iterator[bytes]:
    saved = next(pth.seeds(folder))
    (folder / "saved.pth").write_bytes(saved)
    with zipfile.ZipFile(io.BytesIO(saved)) as archive:
        yield from (archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))


def read(data: bytes, folder: Path) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(folder / "saved.pth") as archive, zipfile.ZipFile(made, "w") as changed:
        for entry in archive.infolist():
            changed.writestr(entry, data if entry.filename.endswith("data.pkl") else archive.read(entry))
    pth.read(made.getvalue(), folder)
