"""Plans of `matrix`, as TOML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from runtimes import manifest
from tests.fuzz.readers.manifest import document
from validation.matrix import plan

SEED = """artifacts = ["tiny*"]
[[device]]
name = "desk"
on = ["ort:cpu"]
targets = ["onnx-cpu"]
needs = "desk"
[work]
validate = true
bench = false
steps = 8
"""


def seeds(folder: Path) -> Iterator[bytes]:
    (folder / "tiny").mkdir(exist_ok=True)
    manifest.write(document(folder / "tiny"), folder / "tiny")
    yield SEED.encode()
    yield SEED.replace("tiny*", "./*/manifest.json/..").encode()


def read(data: bytes, folder: Path) -> None:
    if re.search(rb"""["'\n]/[^"']|\.\./""", data):  # a pattern may look through this whole disk, as long as that takes
        return
    path = folder / "plan.toml"
    path.write_bytes(data)
    for cell in plan.read(path):
        assert cell.key
