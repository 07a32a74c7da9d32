"""An artifact folder appears whole or not at all, whatever ends the export and whoever else writes there."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from exporter import atomic, export, pipeline
from exporter.atomic import replacing
from runtimes import manifest
from runtimes.errors import Missing, WrongCall
from rwkv_export.main import run
from tests.conftest import Exports

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NAME = "random-4.torch.fp32"


def crashes(*arguments: str | Path) -> list[dict[str, Any]]:
    """What crashes.py found, a moment each."""
    command = [sys.executable, ROOT / "tests" / "unit" / "crashes.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, text: str) -> None:
    (folder / "sub").mkdir()
    for name in ("a", "sub/b"):
        (folder / name).write_text(text)


def texts(folder: Path) -> set[str]:
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} == {"a", "sub", "sub/b"}
    return {(folder / name).read_text() for name in ("a", "sub/b")}


@pytest.mark.parametrize("situation", [(), ("--older",), ("--older", "--no-exchange")], ids=" ".join)
@pytest.mark.parametrize("number", ["SIGKILL", "SIGINT"])
def test_ended_at_any_moment_the_folder_is_whole_or_as_before(
    tmp_path: Path, number: str, situation: tuple[str, ...]
) -> None:
    found = crashes(tmp_path / "out" / "model", "--signal", number, *situation)
    assert len(found) > 20
    assert found[0]["left"] == found[0]["was"] != found[0]["complete"]
    for crash in found:
        assert crash["killed"]
        moved_aside = number == "SIGKILL" and "--no-exchange" in situation and crash["left"] is None
        assert crash["left"] in (crash["was"], crash["complete"]) or moved_aside, crash
        assert crash["after the sweep"] in (crash["was"], crash["complete"]), crash
        assert crash["beside"] == [], crash
        if number == "SIGINT":
            assert crash["unswept"] == [] or crash["left"] == crash["complete"], crash


@pytest.mark.parametrize(("number", "moments"), [("SIGKILL", 3), ("SIGINT", 2)])
def test_an_export_ended_at_random_moments_leaves_the_older_artifact(
    exports: Exports, tmp_path: Path, number: str, moments: int
) -> None:
    chosen = ("--signal", number, "--moments", str(moments), "--older", "--checkpoint", exports.checkpoint("4"))
    found = crashes(tmp_path / "out" / NAME, *chosen)
    assert len(found) == moments
    for crash in found:
        assert crash["killed"] or (number == "SIGINT" and crash["left"] == crash["complete"])  # it can be caught
        assert "manifest.json" in crash["complete"]
        assert crash["left"] in (crash["was"], crash["complete"]), crash
        assert (crash["after the sweep"], crash["beside"]) == (crash["left"], []), crash


def interrupted(*_: object) -> NoReturn:
    # Python takes SIGINT only where its parent did not ignore it, which a shell does for background jobs.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    raise AssertionError("the signal came to nothing")


def broken(*_: object) -> NoReturn:
    raise ValueError("a bug")


def full(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


PLACES = [(pipeline.readme, "write"), (pipeline.manifest, "write"), (pipeline.manifest, "list_files")]


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(("fault", "raised"), [(interrupted, KeyboardInterrupt), (broken, ValueError), (full, Missing)])
@pytest.mark.parametrize(("module", "name"), PLACES)
def test_an_export_that_raises_leaves_what_was_there(
    exports: Exports,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    older: bool,
    fault: Callable[..., NoReturn],
    raised: type[BaseException],
    module: Any,
    name: str,
) -> None:
    if older:
        (tmp_path / NAME).mkdir()
        (tmp_path / NAME / "model.pt2").write_bytes(b"an older artifact")
    monkeypatch.setattr(module, name, fault)
    with pytest.raises(raised):
        export(exports.checkpoint("4"), targets=["torch"], out=tmp_path)
    left = {f"{NAME}/model.pt2": b"an older artifact"} if older else {}
    assert bytes_of(tmp_path) == left
    assert [path.name for path in tmp_path.iterdir()] == ([NAME] if older else [])


def test_a_full_disk_is_one_message_and_exit_code_3(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline.manifest, "write", full)
    code = run(["export", str(exports.checkpoint("4")), "-t", "torch", "-o", str(tmp_path), "-q"])
    printed = capsys.readouterr()
    assert (code, printed.out) == (3, "")
    said = printed.err.splitlines()
    assert said[0].startswith(f"error: the disk of {tmp_path} is full (")
    assert said[1:] == ["", "hint: free some space, or choose another -o"]


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


Mount = Callable[[Path, str], AbstractContextManager[Path]]


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("target", ["torch", "onnx-cpu", "coreml", "executorch-portable"])
def test_every_writer_meets_a_disk_that_is_really_full(exports: Exports, tmp_path: Path, target: str) -> None:
    with mounted(tmp_path / "disk", "size=300k") as disk:
        with pytest.raises(Missing, match=rf"the disk of {disk}/out is full \(0 MiB free\)") as caught:
            export(exports.checkpoint("4"), targets=[target], out=disk / "out")
        assert caught.value.exit_code == 3
        assert list((disk / "out").iterdir()) == []


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder nobody can write to: permissions do not stop root."""
    if os.geteuid() == 0:
        with mounted(folder, "ro,size=4k") as place:
            yield place
    else:
        folder.mkdir(mode=0o555)
        yield folder


def test_a_place_that_cannot_be_written_is_named(exports: Exports, tmp_path: Path) -> None:
    with read_only(tmp_path / "closed") as closed:
        for out in (closed, closed / "below"):
            with pytest.raises(WrongCall, match=rf"^cannot write to {closed}\S*: (Read-only|Permission)") as caught:
                export(exports.checkpoint("4"), targets=["torch"], out=out)
            assert caught.value.hint == "choose another folder with -o"


@pytest.mark.parametrize("below", ["", "deeper", "deeper/still"])
def test_a_file_where_the_folder_should_be_is_named(exports: Exports, tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(WrongCall, match=rf"^cannot write to {file}\S*: (File exists|Not a directory)"):
        export(exports.checkpoint("4"), targets=["torch"], out=file / below)
    assert file.read_text() == "mine"


def test_a_file_or_a_link_with_the_artifacts_name_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for name in ("file", "link"):
        with (
            pytest.raises(WrongCall, match=rf"^{tmp_path}/{name} exists and is not a folder"),
            replacing(tmp_path / name),
        ):
            pass
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder", "link"}


def test_a_file_system_that_cannot_swap_folders_gets_the_new_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("first", "second"):
        with replacing(tmp_path / "model") as folder:
            write(folder, text)
        monkeypatch.setattr(atomic.ctypes, "CDLL", lambda name: SimpleNamespace(renameat2=lambda *paths: -1))
    assert texts(tmp_path / "model") == {"second"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_two_writers_of_one_process_do_not_mix(tmp_path: Path) -> None:
    destination = tmp_path / "model"
    with replacing(destination) as first:
        write(first, "first")
        with replacing(destination) as second:
            write(second, "second")
        assert texts(destination) == {"second"}
        assert texts(first) == {"first"}
    assert texts(destination) == {"first"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_during_another_of_the_same_model_leaves_one_whole_artifact(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_write, expected = manifest.write, manifest.open_artifact(exports("4", "torch")).manifest

    def write_after_another_export(*arguments: Any) -> None:
        monkeypatch.setattr(pipeline.manifest, "write", own_write)
        export(exports.checkpoint("4"), targets=["torch"], out=tmp_path)
        own_write(*arguments)

    monkeypatch.setattr(pipeline.manifest, "write", write_after_another_export)
    export(exports.checkpoint("4"), targets=["torch"], out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert manifest.open_artifact(tmp_path / NAME).manifest == expected


WRITER = """
import sys
from pathlib import Path
from exporter.atomic import replacing

print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    with replacing(Path(sys.argv[1])) as folder:
        (folder / "sub").mkdir()
        for name in ("a", "sub/b"):
            (folder / name).write_text(sys.argv[2])
"""


def test_writers_in_several_processes_never_mix(tmp_path: Path) -> None:
    def start(word: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, tmp_path / "out" / "model", word]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)

    writers = [start(word) for word in ("one", "two", "three")]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        assert (writer.wait(60), writer.stderr.read()) == (0, "")
    assert len(texts(tmp_path / "out" / "model")) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


def test_a_folder_that_is_being_written_is_not_swept(tmp_path: Path) -> None:
    with replacing(tmp_path / "one") as one:
        program = "import sys; from pathlib import Path; from exporter.atomic import replacing\n"
        program += "with replacing(Path(sys.argv[1])): pass"
        subprocess.run([sys.executable, "-c", program, tmp_path / "another"], cwd=ROOT, check=True)
        write(one, "still here")
    assert texts(tmp_path / "one") == {"still here"}
    assert {path.name for path in tmp_path.iterdir()} == {"one", "another"}


def test_folders_that_only_look_like_leftovers_are_left_alone(tmp_path: Path) -> None:
    for name in (".mine.part", ".git", ".model.12345678.parts", "model.12345678.part"):
        (tmp_path / name).mkdir()
    with replacing(tmp_path / "model"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {
        ".mine.part", ".git", ".model.12345678.parts", "model.12345678.part", "model"
    }  # fmt: skip
