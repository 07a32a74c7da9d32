"""What fuzzing and reading found, each by its name: once a crash, a hang or too much memory, now one sentence."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtimes.errors import RwkvExportError
from runtimes.mil import from_pte
from runtimes.schema import to_plain
from tests.fuzz import oracle
from tests.fuzz.readers import manifest as manifests
from tests.fuzz.readers import matrix_plan, mil_package, results

pytestmark = pytest.mark.slow

Change = Callable[[Any], object]


def manifest(change: Change) -> Callable[[Path], bytes]:
    def made(folder: Path) -> bytes:
        document = to_plain(manifests.document(folder))
        change(document)
        return json.dumps(document).encode()

    return made


def result(change: Change) -> Callable[[Path], bytes]:
    def made(folder: Path) -> bytes:
        document = to_plain(results.document())
        change(document)
        return json.dumps(document).encode()

    return made


def state(name: str, header: dict[str, object], data: bytes = b"") -> Callable[[Path], bytes]:
    """An .npz file of one array."""
    text = repr(header).encode().ljust(117) + b"\n"

    def made(folder: Path) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr(name, np.lib.format.magic(1, 0) + struct.pack("<H", len(text)) + text + data)
        return stream.getvalue()

    return made


def deflated(folder: Path) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, wkv=np.zeros(1 << 20, np.float32))
    return stream.getvalue()


def repeated(legacy: bool) -> Callable[[Path], bytes]:
    """A terabyte of the same value."""

    def made(folder: Path) -> bytes:
        stream = io.BytesIO()
        wide = {"emb.weight": torch.zeros(1).expand(1 << 20, 1 << 18)}
        torch.save(wide, stream, _use_new_zipfile_serialization=not legacy)
        return stream.getvalue()

    return made


def listed_as_a_folder(folder: Path) -> bytes:
    """A checkpoint with an entry that is a folder too: torch's own reader took memory that nobody wrote for it."""
    stream = io.BytesIO()
    torch.save({"emb.weight": torch.ones(3, 2)}, stream)
    with zipfile.ZipFile(stream) as archive:
        (entry,) = [entry for entry in archive.infolist() if entry.filename.endswith("/data/0")]
    content = bytearray(stream.getvalue())
    content[content.rindex(entry.filename.encode()) - 8] |= 0x10
    content[content.rindex(entry.filename.encode()) - 22] += 1  # and it says that it is longer
    return bytes(content)


def file_system(nodes: list[Any], data: bytes = b"12345678") -> Callable[[Path], bytes]:
    return lambda folder: data + json.dumps({"nodes": nodes}).encode()[::-1]


def nested(levels: int) -> list[Any]:
    """Folders that hold the one before twice: 2 ** levels paths."""
    return [{"kind": 0, "dataRegion": {"offset": 0, "size": 1}}] + [
        {"kind": 1, "children": {"a": index, "b": index}} for index in range(levels)
    ]


def named(name: str) -> list[Any]:
    return [{"kind": 0, "dataRegion": {"offset": 0, "size": 8}}, {"kind": 1, "children": {name: 0}}]


def model_named(name: str) -> Callable[[Path], bytes]:
    def made(folder: Path) -> bytes:
        document = json.loads(next(mil_package.seeds(folder)))
        document["itemInfoEntries"][document["rootModelIdentifier"]]["path"] = name
        return json.dumps(document).encode()

    return made


def listed(name: str) -> dict[str, Any]:
    return {"path": name, "bytes": 0, "sha256": "0" * 64}


def same_bytes_again(count: int) -> list[Any]:
    region = {"kind": 0, "dataRegion": {"offset": 0, "size": 1 << 16}}
    return [region] * count + [{"kind": 1, "children": {str(index): index for index in range(count)}}]


def plan(text: str) -> Callable[[Path], bytes]:
    return lambda folder: text.encode()


FLOAT = {"descr": "<f4", "fortran_order": False}
FOUND: dict[str, tuple[str, Callable[[Path], bytes], str]] = {
    "an empty state file": ("initial_state", lambda folder: b"", "holds no tensors"),
    "a zip version from the future": ("initial_state", lambda folder: _future(), "zip file version"),
    "a state of exabytes": ("initial_state", state("a.npy", {**FLOAT, "shape": (1 << 60,)}), "which is not"),
    "a state of negative size": ("initial_state", state("a.npy", {**FLOAT, "shape": (-1,)}, b"1234"), "which is not"),
    "a state of objects": ("initial_state", state("a.npy", {**FLOAT, "descr": "|O", "shape": (1,)}), "holds object"),
    "a state that unpacks to a thousand times its size": ("initial_state", deflated, "is compressed"),
    "a tensor of one value repeated a terabyte": ("pth", repeated(legacy=False), "more values than the file holds"),
    "the same in the older format": ("pth", repeated(legacy=True), "more values than the file holds"),
    "a number that no float holds": ("manifest", manifest(lambda d: d["model"].update(ln_x_eps=10**400)), "64 bits"),
    "a number of more than 64 bits": ("manifest", manifest(lambda d: d["model"].update(layers=1 << 63)), "64 bits"),
    "a hash that is a path": ("manifest", manifest(lambda d: d["files"][0].update(sha256="../" * 21 + "x")), "SHA-256"),
    "a state of petabytes": ("manifest", manifest(lambda d: d["state"][0].update(shape=[1 << 50])), "a state of"),
    "a state with an empty axis": ("manifest", manifest(lambda d: d["state"][0].update(shape=[0, 4])), "of shape"),
    "a graph of no tokens": ("manifest", manifest(lambda d: d["graphs"][0].update(tokens=0)), "a graph of 0 tokens"),
    "an input of no known type": ("manifest", manifest(lambda d: d["graphs"][0].update(input_dtype="V9")), "of type"),
    "a vocabulary without end": ("manifest", manifest(lambda d: d["model"].update(vocab=1 << 40)), "a vocabulary of"),
    "a file name of two lines": ("manifest", manifest(lambda d: d["graphs"][0].update(file="a\nb")), "speaks of"),
    "half a character in a name": ("manifest", manifest(lambda d: d["files"].append(listed("\ud800"))), "leaves"),
    "a NUL in a name": ("manifest", manifest(lambda d: d["files"].append(listed("a\0b"))), "leaves"),
    "a plan of endless lists": ("matrix_plan", plan("artifacts = " + "[" * 5000), "is not a plan"),
    "a plan with a NUL in a pattern": ("matrix_plan", plan(matrix_plan.SEED.replace("tiny*", "a\\u0000")), "no folder"),
    "a pattern that is none": ("matrix_plan", plan(matrix_plan.SEED.replace("tiny*", "tiny**")), "no pattern"),
    "the root as a pattern": ("matrix_plan", plan(matrix_plan.SEED.replace("tiny*", "/")), "no pattern"),
    "weights that are a folder": ("pth", listed_as_a_folder, "has 25 bytes for 6 values"),
    "a tokenizer that is none": ("tokenizer", lambda folder: b"{}", "is not a tokenizer"),
    "folders that hold each other": ("pte_coreml", file_system(nested(40)), "file name"),
    "a file name longer than systems allow": ("pte_coreml", file_system(named("a" * 5000)), "file name"),
    "a name that is too long in bytes only": ("pte_coreml", file_system(named("ÿ" * 200)), "file name"),
    "a path that is too long in bytes only": ("pte_coreml", file_system(named("ÿ" * 120)), "a path of 240"),
    "a model's file of such a name": ("mil_package", model_named("1" * 300), "is missing"),
    "a listed file of such a name": ("manifest", manifest(lambda d: d["files"].append(listed("ÿ" * 130))), "too long"),
    "a file instead of a delegate's folder": ("pte_coreml", file_system(named("a")[:1]), "topmost node is a file"),
    "a NUL in a delegate's file name": ("pte_coreml", file_system(named("a\0b")), "file name"),
    "a drive in a delegate's file name": ("pte_coreml", file_system(named("C:a")), "file name"),
    "the same bytes as a thousand files": ("pte_coreml", file_system(same_bytes_again(99), bytes(1 << 16)), "files of"),
}  # fmt: skip


def _future() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, wkv=np.zeros(1))
    content = bytearray(stream.getvalue())
    content[content.index(b"PK\x01\x02") + 6] = 211  # the version needed to extract, in tenths
    return bytes(content)


@pytest.mark.parametrize("name", FOUND)
def test_it_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    reader, made, said = FOUND[name]
    assert said in str(oracle.load(reader).judge(made(tmp_path), tmp_path))


def test_texts_that_steer_a_terminal_are_escaped_when_read(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(result(lambda d: d["machine"].update(cpu="\x1b[2J\u202ex"))(tmp_path))
    from validation import outcome

    assert outcome.read(tmp_path / "r.json").machine.cpu == "\\x1b[2J\\u202ex"


def test_a_message_is_one_line_that_steers_nothing() -> None:
    error = RwkvExportError("no \x1b[31mfile\n\ud800", hint="a\nb")
    assert (error.message, str(error), error.hint) == ("no \\x1b[31mfile \\ud800",) * 2 + ("a\nb",)


def test_files_of_a_delegate_are_written_below_its_folder_only(tmp_path: Path) -> None:
    from_pte.unpack(file_system(named("a"))(tmp_path), tmp_path / "in")
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"in", "in/a"}
