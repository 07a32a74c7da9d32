"""Large data files: written piece by piece in little memory, and continued by the same job wherever it was stopped."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from exporter import journal, streaming
from exporter.atomic import replacing
from exporter.checkpoint import open_checkpoint
from exporter.models.parameters import Take
from exporter.passes import onnx_weights
from exporter.progress import silent
from exporter.streaming import Piece
from exporter.synth import synth
from runtimes.errors import BadCheckpoint
from rwkv_export.main import run
from rwkv_export.output import talking
from tests.conftest import Exports
from tests.memory import forget_peak, peak
from tests.unit.test_atomic import bytes_of, crashes

pytestmark = pytest.mark.slow

JOB = {"checkpoint": "0f3a", "precision": "fp16"}
SIZES = (3000, 1, 70_000, 64, 9_999, 128)


class Source:
    """Pieces of random bytes with gaps between them; counts what is read."""

    def __init__(self, seed: int = 1) -> None:
        self.read: list[str] = []
        chance, end = random.Random(seed), 0
        self.contents, self.pieces = {}, []
        for number, size in enumerate(SIZES):
            name, start = f"w{number}", end + 100
            self.contents[name] = chance.randbytes(size)
            self.pieces.append(Piece(name, start, size, lambda name=name: self._content(name)))
            end = start + size

    def _content(self, name: str) -> memoryview:
        self.read.append(name)
        return memoryview(self.contents[name])

    def file(self) -> bytes:
        """What the data file must be."""
        return b"".join(bytes(100) + content for content in self.contents.values())


@pytest.fixture(autouse=True)
def everything_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "WORTH_IT", 0)
    monkeypatch.setattr(streaming, "PART", 1000)


def export(destination: Path, source: Source, job: dict[str, str] = JOB, stop_at: str = "", how: Any = None) -> None:
    """Write the data file and another one, and raise `how` when the piece `stop_at` is wanted."""

    def read(piece: Piece) -> memoryview:
        if piece.name == stop_at:
            raise how
        return piece.read()

    pieces = [Piece(p.name, p.offset, p.length, lambda p=p: read(p)) for p in source.pieces]
    with replacing(destination, job) as folder:
        (folder / "before.txt").write_text("written before the data")
        streaming.write(folder / "data", pieces, silent)
        (folder / "after.txt").write_text("written after the data")


def interrupted(destination: Path, source: Source, stop_at: str = "w4") -> Path:
    """Interrupt an export; returns the hidden folder that it leaves."""
    with pytest.raises(KeyboardInterrupt):
        export(destination, source, stop_at=stop_at, how=KeyboardInterrupt())
    (hidden,) = destination.parent.iterdir()
    return hidden


def check(destination: Path, source: Source) -> None:
    """The artifact is complete, and alone in its folder."""
    assert (destination / "data").read_bytes() == source.file()
    assert {path.name for path in destination.iterdir()} == {"data", "before.txt", "after.txt"}
    assert [path.name for path in destination.parent.iterdir()] == [destination.name]


def test_pieces_lie_where_planned_and_gaps_are_zero(tmp_path: Path) -> None:
    source = Source()

    streaming.write(tmp_path / "data", source.pieces, silent)

    assert (tmp_path / "data").read_bytes() == source.file()
    assert source.read == list(source.contents)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_progress_is_in_bytes_and_comes_in_parts(tmp_path: Path) -> None:
    source, told = Source(), []

    @contextmanager
    def progress(text: str, total: int | None = None) -> Iterator[Any]:
        told.append((text, total))
        assert source.read == []
        yield told.append

    streaming.write(tmp_path / "data", source.pieces, progress)

    assert told[0] == ("writing data", sum(SIZES)) and sum(told[1:]) == sum(SIZES)
    assert max(told[1:]) == 1000


@pytest.mark.parametrize("content", [b"abc", b"abcde"])
def test_a_piece_of_another_length_than_planned_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match=f"w has {len(content)} bytes, planned were 4"):
        streaming.write(tmp_path / "data", [Piece("w", 0, 4, lambda: memoryview(content))], silent)


@pytest.mark.parametrize("situation", [(), ("--older",)], ids=" ".join)
@pytest.mark.parametrize("number", ["SIGKILL", "SIGINT"])
def test_ended_at_any_moment_the_same_job_ends_with_the_same_bytes(
    tmp_path: Path, number: str, situation: tuple[str, ...]
) -> None:
    found = crashes(tmp_path / "out" / "model", "--streamed", "--signal", number, *situation)
    assert len(found) > 30
    for crash in found:
        assert crash["killed"]
        assert crash["left"] in (crash["was"], crash["complete"]), crash
        assert crash["after the sweep"] == crash["complete"], crash
        assert crash["beside"] == [], crash
    assert {crash["read again"] for crash in found} == {0, 1, 2, 3, 4}


def test_an_interrupted_job_continues_after_its_last_whole_piece(tmp_path: Path) -> None:
    interrupted(tmp_path / "model", Source())
    source = Source()

    export(tmp_path / "model", source)

    assert source.read == ["w4", "w5"]
    check(tmp_path / "model", source)


def test_what_is_left_to_do_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hidden, source = interrupted(tmp_path / "model", Source()), Source()
    with talking(quiet=False) as progress:
        streaming.write(hidden / "artifact" / "data", source.pieces, progress)

    assert capsys.readouterr().err.splitlines() == ["checking data", "continuing data at 88%"]


def test_an_interruption_says_how_to_continue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), talking(quiet=False):
        export(tmp_path / "model", Source(), stop_at="w4", how=KeyboardInterrupt())

    (hidden,) = tmp_path.iterdir()
    assert capsys.readouterr().err == f"what was written is in {hidden}: the same command continues there\n"


@pytest.mark.parametrize("changed", [{"precision": "int4"}, {"checkpoint": "1111"}, {"prefill": "16"}])
def test_another_job_starts_again(tmp_path: Path, changed: dict[str, str]) -> None:
    interrupted(tmp_path / "model", Source())
    source = Source(seed=2)

    export(tmp_path / "model", source, JOB | changed)

    assert source.read == list(source.contents)
    check(tmp_path / "model", source)


def test_another_plan_is_not_mixed_with_what_is_there(tmp_path: Path) -> None:
    interrupted(tmp_path / "model", Source())
    source = Source(seed=2)
    moved = source.pieces[2]
    source.pieces[2] = Piece("renamed", moved.offset, moved.length, moved.read)

    export(tmp_path / "model", source)

    assert source.read == ["w2", "w3", "w4", "w5"]


@pytest.mark.parametrize("file", ["journal.jsonl", "artifact/data"])
def test_whatever_happens_to_what_was_left_the_bytes_are_right(tmp_path: Path, file: str) -> None:
    chance, read = random.Random(file), set()
    for number in range(100):
        destination, source = tmp_path / str(number) / "model", Source()
        destination.parent.mkdir()
        path = interrupted(destination, Source()) / file
        content = bytearray(path.read_bytes())
        if number % 3 == 0:
            content[chance.randrange(len(content))] = chance.randrange(256)
        elif number % 3 == 1:
            del content[chance.randrange(len(content)) :]
        else:
            content += chance.randbytes(1 << 14)
        path.write_bytes(content)

        export(destination, source)

        check(destination, source)
        read.add(len(source.read))
    assert len(read) > 2


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint):
        export(tmp_path / "model", Source(), stop_at="w4", how=BadCheckpoint("w4 holds 3 NaN"))

    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_small_file_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source()
    monkeypatch.setattr(streaming, "WORTH_IT", source.pieces[-1].end + 1)

    with pytest.raises(KeyboardInterrupt) as caught:
        export(tmp_path / "model", source, stop_at="w4", how=KeyboardInterrupt())

    assert list(tmp_path.iterdir()) == [] and not hasattr(caught.value, "__notes__")


def test_other_exports_into_the_same_place_leave_it_for_a_week(tmp_path: Path) -> None:
    hidden = interrupted(tmp_path / "model", Source())
    with replacing(tmp_path / "another", JOB):
        pass
    assert hidden.exists()

    os.utime(hidden / journal.FILE, (time.time() - 6 * 24 * 3600,) * 2)
    with replacing(tmp_path / "another", JOB):
        pass
    assert hidden.exists()

    os.utime(hidden / journal.FILE, (time.time() - 8 * 24 * 3600,) * 2)
    with replacing(tmp_path / "another", JOB):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["another"]


def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    one, other, destination = Source(), Source(seed=2), tmp_path / "model"
    interrupted(destination, Source())
    with replacing(destination, JOB) as folder:
        export(destination, other)
        assert (destination / "data").read_bytes() == other.file()
        streaming.write(folder / "data", one.pieces, silent)
    assert one.read == ["w4", "w5"] and other.read == list(other.contents)
    assert {path.name: path.read_bytes() for path in destination.iterdir()} == {"data": one.file()}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_interrupted_command_continues_and_ends_with_the_same_artifact(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, own_add, added = exports("4", "onnx-cpu", precision="fp16"), journal.Journal.add, []
    command = ["export", str(exports.checkpoint("4")), "-t", "onnx-cpu", "-p", "fp16", "-o", str(tmp_path)]

    def add(self: journal.Journal, note: journal.Note) -> None:
        own_add(self, note)
        added.append(note)
        if len(added) == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(journal.Journal, "add", add)
    assert run(command) == 130
    assert "the same command continues there" in capsys.readouterr().err
    assert run(command) == 0
    assert "continuing model.onnx.data at" in capsys.readouterr().err
    assert len({note.name for note in added}) == len(added)
    assert bytes_of(tmp_path) == {f"{whole.name}/{name}": content for name, content in bytes_of(whole).items()}


def graph(parameters: dict[str, Any]) -> ir.Model:
    """A graph of initializers alone."""
    values = [ir.Value(name=name, const_value=None) for name in parameters]
    made = ir.Model(ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 18}), ir_version=10)
    onnx_weights.attach(made, parameters)
    return made


def parameters(checkpoint: Path) -> dict[str, Any]:
    weights = open_checkpoint(checkpoint)
    return {name: Take(weights)(name) for name in weights}


def test_an_onnx_file_finds_every_tensor_in_its_data_file(tmp_path: Path) -> None:
    checkpoint = synth("7", layers=1, width=512, vocab=1030, out=tmp_path / "a.pth", dtype="fp16")

    onnx_weights.save_with_data(graph(parameters(checkpoint)), tmp_path / "a.onnx", "a.data", silent)

    read = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "a.onnx").graph.initializer
    }
    weights = open_checkpoint(checkpoint)
    assert read.keys() == set(weights)
    assert all(np.array_equal(read[name], weights[name].float().numpy()) for name in weights)


def test_large_tensors_start_on_a_page_and_others_on_a_cache_line(tmp_path: Path) -> None:
    odd = {f"w{n}": torch.nn.Parameter(torch.zeros(n), requires_grad=False) for n in (300, 301, 400_000, 302)}
    made = graph(odd)
    for name, initializer in made.graph.initializers.items():
        initializer.const_value = ir.Tensor(np.zeros(odd[name].shape, np.float32), name=name)

    placed = onnx_weights.save_with_data(made, tmp_path / "a.onnx", "a.data", silent)

    assert {name: tensor.offset for name, tensor in placed.items()} == {
        "w300": 0,
        "w301": 1216,
        "w400000": 4096,
        "w302": 1_604_096,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory the Linux way")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_memory_is_bounded_by_the_largest_tensor(tmp_path: Path, suffix: str, dtype: str) -> None:
    small, deep = {"width": 512, "vocab": 1024}, 12
    synth("7", **small, layers=1, out=tmp_path / f"warm{suffix}", dtype=dtype)
    largest = 4 * 512 * 512 * 4  # the feed-forward's, float32
    made = graph(parameters(synth("7", **small, layers=deep, out=tmp_path / f"a{suffix}", dtype=dtype)))
    forget_peak()
    before = peak()

    onnx_weights.save_with_data(made, tmp_path / "a.onnx", "a.data", silent)

    assert (tmp_path / "a.data").stat().st_size > 30 * largest
    assert peak() - before < 5 * largest
