"""A .pt2 archive that could run code is refused before torch loads it, and nothing of it has run."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import runtimes
from runtimes import manifest
from runtimes.errors import BadArtifact
from tests.conftest import Exports

Entries = list[tuple[str, bytes]]

WEIGHTS = "archive/data/weights/model_weights_config.json"
CONSTANTS = "archive/data/constants/model_constants_config.json"
SAMPLES = "archive/data/sample_inputs/model.pt"
PROGRAM = "archive/models/model.json"


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def pickled(marker: Path) -> bytes:
    return pickle.dumps((Touch(marker),))


def saved(marker: Path) -> bytes:
    """As torch.save writes it."""
    buffer = io.BytesIO()
    torch.save((Touch(marker),), buffer)
    return buffer.getvalue()


def change(entries: Entries, name: str, alter: Callable[[Any], None]) -> Entries:
    """The entries with one JSON document altered."""
    documents = dict(entries)
    document = json.loads(documents[name])
    alter(document)
    return [(key, json.dumps(document).encode() if key == name else data) for key, data in entries]


def pickled_weight(entries: Entries, marker: Path) -> Entries:
    def alter(document: Any) -> None:
        payload = next(iter(document["config"].values()))
        payload |= {"use_pickle": True, "path_name": "weight_1000"}

    return [*change(entries, WEIGHTS, alter), ("archive/data/weights/weight_1000", saved(marker))]


def pickled_constant(entries: Entries, marker: Path) -> Entries:
    payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    altered = change(entries, CONSTANTS, lambda document: document["config"].update(thing=payload))
    return [*altered, ("archive/data/constants/opaque_obj_0", pickled(marker))]


def pickled_samples(entries: Entries, marker: Path) -> Entries:
    return [(name, saved(marker) if name == SAMPLES else data) for name, data in entries]


def older_pickled_weights(entries: Entries, marker: Path) -> Entries:
    return [*entries, ("archive/data/weights/model.pt", saved(marker))]


def samples_twice(entries: Entries, marker: Path) -> Entries:
    """zipfile reads the last entry of a name, torch another."""
    first = [(SAMPLES, saved(marker)), *entries]
    return first if first_wins(first) else [*entries, (SAMPLES, saved(marker))]


def first_wins(entries: Entries) -> bool:
    buffer = io.BytesIO()
    pack(entries, buffer)
    buffer.seek(0)
    reader = torch._C.PyTorchFileReader(buffer)
    return bool(reader.get_record("data/sample_inputs/model.pt") == entries[0][1])


def samples_in_capitals(entries: Entries, marker: Path) -> Entries:
    """torch finds entries whatever their case."""
    other = [(name, data) for name, data in entries if name != SAMPLES]
    return [*other, ("archive/DATA/sample_inputs/model.pt", saved(marker)), (SAMPLES, dict(entries)[SAMPLES])]


def older_format(entries: Entries, marker: Path) -> Entries:
    """Of torch 2.7: no folder in the archive."""
    program = dict(entries)[PROGRAM]
    major, minor = json.loads(program)["schema_version"].values()
    return [
        ("version", f"{major}.{minor}".encode()),
        ("serialized_exported_program.json", program),
        ("serialized_state_dict.pt", saved(marker)),
        ("serialized_constants.pt", saved(marker)),
        ("serialized_example_inputs.pt", saved(marker)),
    ]


def evaluated_size(entries: Entries, marker: Path) -> Entries:
    """torch hands sizes that are expressions to sympy, which evaluates them as Python."""
    code = f"__import__('os').system('touch {marker}')"

    def alter(document: Any) -> None:
        tensor = document["graph_module"]["graph"]["tensor_values"]["tokens"]
        tensor["sizes"] = [{"as_expr": {"expr_str": code, "hint": None}}]

    return change(entries, PROGRAM, alter)


def written_file(entries: Entries, marker: Path) -> Entries:
    """Not every tensor operator stays among tensors."""

    def alter(document: Any) -> None:
        graph = document["graph_module"]["graph"]
        values = {"filename": {"as_string": str(marker)}, "shared": {"as_bool": True}, "size": {"as_int": 4}}
        inputs = [{"name": name, "arg": value, "kind": 1} for name, value in values.items()]
        output = {"outputs": [{"as_tensor": {"name": "mapped"}}], "name": "mapped"}
        operator = {"target": "torch.ops.aten.from_file.default", "inputs": inputs, **output}
        graph["nodes"].insert(0, {**copy.deepcopy(graph["nodes"][0]), **operator})
        graph["tensor_values"]["mapped"] = copy.deepcopy(graph["tensor_values"]["embedding"])

    return change(entries, PROGRAM, alter)


def compiled_library(entries: Entries, marker: Path) -> Entries:
    return [*entries, ("archive/data/aotinductor/model/model.so", b"\x7fELF")]


RUNS = [
    pickled_weight,
    pickled_constant,
    pickled_samples,
    older_pickled_weights,
    samples_twice,
    samples_in_capitals,
    older_format,
    evaluated_size,
    written_file,
]
"""What torch itself would run."""


def unpacked(path: Path) -> Entries:
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def pack(entries: Entries, file: io.BytesIO | Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries:
            archive.writestr(name, data)


def crafted(exports: Exports, folder: Path, entries: Entries) -> Path:
    """A copy of an artifact with another archive in it, its hash being right."""
    copied = Path(shutil.copytree(exports("4", "torch", prefill=(5,)), folder / "crafted"))
    pack(entries, copied / "decode.pt2")
    document = manifest.read(copied)
    manifest.write(dataclasses.replace(document, files=manifest.list_files(copied)), copied)
    return copied


@pytest.fixture(scope="module")
def plain(exports: Exports) -> Entries:
    return unpacked(exports("4", "torch", prefill=(5,)) / "decode.pt2")


def test_the_same_archive_packed_again_still_runs(exports: Exports, tmp_path: Path, plain: Entries) -> None:
    session = runtimes.open_session(crafted(exports, tmp_path, plain))
    same = runtimes.open_session(exports("4", "torch", prefill=(5,)))
    one, other = (s.step(7, s.initial_state()).logits for s in (session, same))
    assert (one == other).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("craft", RUNS)
def test_an_archive_that_runs_code_is_refused_before_it_does(
    exports: Exports, tmp_path: Path, plain: Entries, craft: Callable[[Entries, Path], Entries]
) -> None:
    marker = tmp_path / "marker"
    folder = crafted(exports, tmp_path, craft(plain, marker))
    with pytest.raises(BadArtifact) as refused:
        runtimes.open_session(folder)
    assert not marker.exists()
    assert str(folder / "decode.pt2") in refused.value.message
    assert "\n" not in refused.value.message
    with contextlib.suppress(Exception):  # torch without us does run it, else this would prove nothing
        program = torch.export.load(folder / "decode.pt2")
        program.module(check_guards=False)(*program.example_inputs[0])
    assert marker.exists()


def test_an_archive_with_a_compiled_library_is_refused(exports: Exports, tmp_path: Path, plain: Entries) -> None:
    with pytest.raises(BadArtifact, match=r"holds the entry data/aotinductor/model/model\.so; refused"):
        runtimes.open_session(crafted(exports, tmp_path, compiled_library(plain, tmp_path)))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"not a zip file at all" * 100])
def test_what_is_no_archive_is_refused(exports: Exports, tmp_path: Path, plain: Entries, data: bytes) -> None:
    folder = crafted(exports, tmp_path, plain)
    (folder / "decode.pt2").write_bytes(data)
    document = manifest.read(folder)
    manifest.write(dataclasses.replace(document, files=manifest.list_files(folder)), folder)
    with pytest.raises(BadArtifact, match=r"decode\.pt2 is not a plain torch\.export archive"):
        runtimes.open_session(folder)


def test_a_program_without_its_weights_is_refused(exports: Exports, tmp_path: Path, plain: Entries) -> None:
    entries = [(name, data) for name, data in plain if not name.endswith("weight_0")]
    with pytest.raises(BadArtifact, match=r"torch cannot load .*decode\.pt2"):
        runtimes.open_session(crafted(exports, tmp_path, entries))
