"""Finds the weight files of a Hugging Face model folder; does not interpret tensor names and loads no code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtimes.errors import BadCheckpoint
from runtimes.untrusted import leaves

CONFIG = "config.json"
SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEXED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Folder:
    """A model folder: its settings, the files that hold tensors, the files that describe them, the tensors promised."""

    config: dict[str, Any]
    shards: tuple[Path, ...]
    described_by: tuple[Path, ...]
    promised: frozenset[str]


def open_folder(folder: Path) -> Folder:
    """The parts of a model folder; raises BadCheckpoint."""
    if not (folder / CONFIG).is_file():
        found = sorted(path.name for path in folder.iterdir() if path.suffix in (".pth", ".safetensors"))
        hint = (
            f"name the file itself: {', '.join(found[:5])}" if found else "a model folder has config.json and weights"
        )
        raise BadCheckpoint(f"{folder} is a folder without {CONFIG}", hint=hint)
    config = _json(folder / CONFIG)
    for single, indexed in zip(SINGLE, INDEXED, strict=True):
        if (folder / single).is_file():
            return Folder(config, (folder / single,), (folder / CONFIG,), frozenset())
        if (folder / indexed).is_file():
            return _sharded(folder, config, folder / indexed)
    raise BadCheckpoint(
        f"{folder} has {CONFIG} but no weights", hint=f"it needs {SINGLE[0]}, or {INDEXED[0]} and the files that lists"
    )


def _sharded(folder: Path, config: dict[str, Any], index: Path) -> Folder:
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise BadCheckpoint(f"{index} has no weight_map", hint="download the folder again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if leaves(name) or Path(name).name != name or not name.isprintable():
            raise BadCheckpoint(f"{index} names a file outside its folder: {name!r}")
        if not (folder / name).is_file():
            raise BadCheckpoint(f"{folder} lacks {name}, one of {len(names)} weight files", hint="download it as well")
    return Folder(config, tuple(folder / name for name in names), (folder / CONFIG, index), frozenset(weight_map))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path} is not JSON: {error}", hint="download it again") from error
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{path} holds a {type(content).__name__}, expected an object")
    return content
