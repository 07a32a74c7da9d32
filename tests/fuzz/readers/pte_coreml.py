"""The small file system that holds a Core ML package inside an ExecuTorch program."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from runtimes.mil import from_pte


def seeds(folder: Path) -> Iterator[bytes]:
    contents = {"metadata.json": b'{"inputNames": ["a"]}', "model.mlpackage/Manifest.json": b"{}"}
    data, nodes = b"".join(contents.values()), []
    for offset, content in zip((0, len(contents["metadata.json"])), contents.values(), strict=True):
        nodes.append({"kind": 0, "dataRegion": {"offset": offset, "size": len(content)}})
    nodes.append({"kind": 1, "children": {"Manifest.json": 1}})
    nodes.append({"kind": 1, "children": {"metadata.json": 0, "model.mlpackage": 2}})
    yield data + json.dumps({"nodes": nodes}).encode()[::-1]


def read(data: bytes, folder: Path) -> None:
    into = folder / "unpacked"
    shutil.rmtree(into, ignore_errors=True)
    from_pte.unpack(data, into)
    assert {path.name for path in folder.iterdir()} <= {into.name}
