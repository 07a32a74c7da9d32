"""Core ML exports of several packages that were stopped: the same job goes on, makes the rest, and ends the same."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_exports import checkpoint

from exporter import export, graph, journal, resume
from exporter.atomic import replacing
from exporter.passes import mil_pieces
from exporter.progress import silent
from tests.unit.test_atomic import bytes_of

pytestmark = pytest.mark.slow

JOB = {"checkpoint": "0f3a", "precision": "fp16"}


# Which packages are finished


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """What an interrupted export leaves that had noted a package and a file beside it, and begun another."""
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "model", JOB) as folder:
        for name in ("one.mlpackage/weights/a", "one.mlpackage/b", "table.bin", "two.mlpackage/b"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"what {name} holds")
        resume.note([folder / "one.mlpackage", folder / "table.bin"])
        raise KeyboardInterrupt
    return next(tmp_path.iterdir())


def found(destination: Path, job: dict[str, str] = JOB) -> tuple[bool, bool, set[str]]:
    """Whether each is finished, and what is then there."""
    with replacing(destination, job) as folder:
        one = resume.finished([folder / "one.mlpackage", folder / "table.bin"], silent)
        two = resume.finished([folder / "two.mlpackage"], silent)
        return one, two, {path.name for path in folder.iterdir()}


def test_what_was_noted_is_finished_and_the_rest_is_gone(interrupted: Path, tmp_path: Path) -> None:
    assert found(tmp_path / "model") == (True, False, {"one.mlpackage", "table.bin"})


def test_to_another_job_nothing_is_finished(interrupted: Path, tmp_path: Path) -> None:
    assert found(tmp_path / "model", JOB | {"precision": "fp32"}) == (False, False, set())


def replaced(path: Path, content: bytes) -> None:
    path.write_bytes(content)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda hidden: replaced(hidden / "artifact/one.mlpackage/b", b"whau one.mlpackage/b holds"),
    "a shorter file": lambda hidden: replaced(hidden / "artifact/one.mlpackage/weights/a", b"what"),
    "a file less": lambda hidden: (hidden / "artifact/one.mlpackage/b").unlink(),
    "a file more": lambda hidden: replaced(hidden / "artifact/one.mlpackage/c", b""),
    "another name": lambda hidden: (hidden / "artifact/one.mlpackage/b").rename(hidden / "artifact/one.mlpackage/c"),
    "no table": lambda hidden: (hidden / "artifact/table.bin").unlink(),
    "a torn note": lambda hidden: replaced(hidden / journal.FILE, (hidden / journal.FILE).read_bytes()[:-9]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_as_noted_is_removed(interrupted: Path, tmp_path: Path, change: str) -> None:
    CHANGES[change](interrupted)
    assert found(tmp_path / "model") == (False, False, set())


def test_a_folder_without_a_journal_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    resume.note([tmp_path / "one"])
    assert not resume.finished([tmp_path / "two"], silent)
    assert bytes_of(tmp_path) == {"one": b"1"}


# Whole exports


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "4.pth"
    torch.save(checkpoint("4", 2), path)
    return path


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A package for each layer; the first layer of each that is loaded to be converted."""
    own, loaded = graph.loaded, []

    def load(piece: Any, progress: Any) -> Any:
        loaded.append(piece.start)
        return own(piece, progress)

    monkeypatch.setattr(mil_pieces, "AUTO", 1e-9)  # GB
    monkeypatch.setattr(graph, "loaded", load)
    return loaded


KILLED = """
import os, signal, sys
from exporter import export, resume
from exporter.passes import mil_pieces
own = resume.note
def note(paths):
    own(paths)
    os.kill(os.getpid(), signal.SIGKILL)
mil_pieces.AUTO = 1e-9
resume.note = note
export(sys.argv[1], targets=[sys.argv[2]], out=sys.argv[3])
"""


def kill(model: Path, target: str, out: Path) -> None:
    """End an export, in a process of its own, as soon as its first package is noted."""
    command = [sys.executable, "-c", KILLED, str(model), target, str(out)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL


def interrupt(model: Path, target: str, out: Path) -> None:
    """The same by Ctrl-C, in this process."""
    own = resume.note

    def note(paths: Sequence[Path]) -> None:
        own(paths)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resume, "note", note)
        export(model, targets=[target], out=out)


@pytest.mark.parametrize(("target", "stop"), [("coreml", interrupt), ("coreml-ane", kill)])
def test_a_stopped_export_makes_the_packages_that_lack_and_ends_the_same(
    model: Path, loads: list[int], tmp_path: Path, target: str, stop: Callable[[Path, str, Path], None]
) -> None:
    stop(model, target, tmp_path / "out")
    assert [path.name[0] for path in (tmp_path / "out").iterdir()] == ["."]
    del loads[:]
    (folder,) = export(model, targets=[target], out=tmp_path / "out")
    assert loads == [1]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [folder.name]
    (whole,) = export(model, targets=[target], out=tmp_path / "whole")
    assert loads == [1, 0, 1]
    assert bytes_of(folder) == bytes_of(whole)
