"""OpenVINO's models: read from ONNX, their weights compressed by NNCF, written with one file of weights for several."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from exporter.quiet import quiet
from runtimes import openvino
from runtimes.manifest import Kept

GROUP = 32  # inputs that share a scale of 4 bits
ALIGNED = 64  # bytes
ADAPTER = re.compile(r"[._](down|up)\.")
HEAD = "head.weight"
NUMBERED = re.compile(r'<layer id="(\d+)" name="([A-Z][A-Za-z0-9]*)_\d+"')
PLACE = re.compile(r'offset="(\d+)" size="(\d+)"')
NO_TELEMETRY = "NNCF_CI"  # without it NNCF tells Intel of every use
LOUD = "4 bits here would make up a fifth of all KL"
SMALL = "a twentieth of the bytes, and decays come from them"
TABLE = "4 bits would make up a fifth to a half of all KL, and no time is spent on a table"
UNEVEN = f"its inputs are no multiple of {GROUP}, which share a scale"


def read(path: Path) -> Any:
    """The model in an ONNX file, independent of it."""
    with quiet():
        return openvino.core().read_model(path).clone()


def compress(model: Any, precision: str, wide: Callable[[str], bool]) -> tuple[Kept, ...]:
    """Store the matrices of a model in "int8" or "int4", in place; what has 8 bits where others have 4, and why.

    wide: whether a matrix was chosen to stay as it is, by its parameter's name
    """
    os.environ.setdefault(NO_TELEMETRY, "1")
    import nncf

    modes, found = nncf.CompressWeightsMode, list(_matrices(model))
    kept = [operation for operation, name, _ in found if wide(name)]
    eight: dict[str, str] = {}
    with redirect_stdout(StringIO()):
        if precision == "int4":
            reasons = {operation: reason for operation, name, shape in found if (reason := _reason(name, shape))}
            eight = {_pattern(name): reasons[operation] for operation, name, _ in found if operation in reasons}
            ignored = nncf.IgnoredScope(names=[*dict.fromkeys([*kept, *reasons])])
            four = modes.INT4_ASYM
            nncf.compress_weights(model, mode=four, group_size=GROUP, all_layers=True, ignored_scope=ignored)
        nncf.compress_weights(model, mode=modes.INT8_ASYM, ignored_scope=nncf.IgnoredScope(names=kept))
    return tuple(Kept(pattern, "int8", reason) for pattern, reason in eight.items())


def _matrices(model: Any) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """What takes each matrix of products and lookups, by name; the parameter it is; its shape."""
    for operation in model.get_ordered_ops():
        if operation.get_type_name() not in ("MatMul", "Gather"):
            continue
        for given in operation.inputs():
            source = given.get_source_output().get_node()
            if source.get_type_name() == "Constant" and len(source.shape) == 2:
                yield operation.get_friendly_name(), source.get_friendly_name(), tuple(source.shape)


def _reason(name: str, shape: tuple[int, ...]) -> str | None:
    """Why a matrix has 8 bits where others have 4."""
    if not name.endswith(".weight"):
        return TABLE
    if ADAPTER.search(name):
        return SMALL
    return LOUD if name == HEAD else UNEVEN if shape[1] % GROUP else None


def _pattern(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def save(model: Any, path: Path) -> None:
    """Write a model and its weights beside it, as they are; `share` makes of it what an artifact holds."""
    from openvino import save_model

    save_model(model, path, compress_to_fp16=False)


def share(graphs: Sequence[Path], weights: Path) -> None:
    """Put the weights of written graphs, which lie beside each, into one file, equal ones once.

    Layers that OpenVINO numbered as it came to them in this process are numbered by their place: equal graphs become
    equal bytes.
    """
    places: dict[bytes, int] = {}
    with weights.open("wb") as stream:
        for graph in graphs:
            own = graph.with_suffix(".bin")
            with own.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:

                def moved(found: re.Match[str], data: mmap.mmap = data) -> str:
                    start, size = int(found[1]), int(found[2])
                    part = data[start : start + size]
                    place = places.setdefault(hashlib.sha256(part).digest(), -(-stream.tell() // ALIGNED) * ALIGNED)
                    if place >= stream.tell():
                        stream.write(bytes(place - stream.tell()) + part)
                    return f'offset="{place}" size="{size}"'

                text = NUMBERED.sub(r'<layer id="\1" name="\2_\1"', graph.read_text(encoding="utf-8"))
                graph.write_text(PLACE.sub(moved, text), encoding="utf-8")
            own.unlink()
