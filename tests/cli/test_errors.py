"""Every way to go wrong ends in `error:`, a hint, and the exit code that says what is wrong; never in a traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtimes.errors import BadArtifact, BadCheckpoint, CheckFailed, Missing, WrongCall
from rwkv_export import failure

from .conftest import Cli, Said, latency

Save = Callable[..., Path]


def check(said: Said, code: int, error: str, hint: str) -> None:
    first, blank, second = said.err.splitlines()[-3:]
    assert (said.code, blank, said.out) == (code, "", "")
    assert first.startswith("error: ")
    assert error in first
    assert second.startswith("hint: ")
    assert hint in second
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["exprot"], "'exprot'", "did you mean 'export'"),
        (["frobnicate"], "'frobnicate'", "rwkv-export --help"),
        (["export", "--tragets", "x"], "--tragets", "did you mean --target"),
        (["export"], "--target", "rwkv-export export --help"),
        (["validate"], "ARTIFACT", "rwkv-export validate --help"),
        (["bench", "x", "--tokens", "many"], "--tokens", "rwkv-export bench --help"),
        (["bench", "x", "--tokens", "0"], "greater than or equal to 1, not 0", "rwkv-export bench --help"),
        (["bench", "x", "--tokens", "9999999"], "9999999 are too many, 1048576 at most", "rwkv-export bench --help"),
        (["quality", "x", "--text", os.devnull], f"file {os.devnull} is empty", "rwkv-export quality --help"),
        (["export", "-t", "onx-cpu"], "'onx-cpu'", "did you mean 'onnx-cpu'"),
        (["export", "-t", "onnx-cpu", "-p", "fp23"], "'fp23'", "fp32"),
        (["export", "-t", "onnx-cpu", "-O", "names"], "'names'", "-O names=rwkv-mobile"),
        (["export", "-t", "onnx-cpu", "--names", "nonsense"], "'nonsense'", "rwkv-mobile"),
        (["export", "-t", "onnx-cpu", "--soc", "sm8750"], "no option 'soc' in onnx-cpu", "names"),
        (["export", "-t", "onnx-cpu", "--prefill", "16,x"], "'16,x'", "--prefill 16,64"),
        (["generate", "nowhere"], "nowhere is not an artifact", "rwkv-export export"),
        (["validate", "nowhere"], "nowhere is not an artifact", "rwkv-export export"),
        (["synth", "--version", "77", "-o", "x.pth"], "'77'", "7a"),
        (["synth", "--size", "huge", "-o", "x.pth"], "'huge'", "tiny"),
        (["synth", "-o", "x.bin"], "x.bin", ".pth"),
        (["fetch", "just-a-name"], "'just-a-name'", "BlinkDL"),
    ],
)
def test_a_call_that_makes_no_sense_is_2(cli: Cli, words: list[str], error: str, hint: str) -> None:
    check(cli(*words), 2, error, hint)


def test_a_checkpoint_that_is_not_there_is_3(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "other.pth").touch()
    check(cli("export", tmp_path / "no.pth", "-t", "onnx-cpu"), 3, "no.pth", "other.pth")


def test_a_file_that_is_no_checkpoint_is_2(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "text.pth"
    path.write_text("not a checkpoint")
    said = cli("inspect", path)
    assert said.code == 2
    assert "error: " in said.err
    assert "Traceback" not in said.err


def test_an_output_folder_that_cannot_be_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check(cli("export", "-q", "-t", "torch", "-o", tmp_path / "file"), 2, "file", "-o")


def test_an_output_file_that_cannot_be_is_refused_before_the_work(cli: Cli, tmp_path: Path) -> None:
    said = cli("bench", tmp_path, "--json", tmp_path / "none" / "x.json")
    check(said, 2, f"folder {tmp_path / 'none'} does not exist", "rwkv-export bench --help")


def test_a_file_that_is_not_results_is_named(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    check(cli("report", path, "-o", tmp_path / "r.html"), 2, "x.json", "--json FILE")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CheckFailed("the words", hint="the hint"), 1),
        (WrongCall("the words", hint="the hint"), 2),
        (BadCheckpoint("the words", hint="the hint"), 2),
        (BadArtifact("the words", hint="the hint"), 2),
        (Missing("the words", hint="the hint"), 3),
        (OSError(errno.ENOSPC, "No space left on device", "the words"), 3),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "the words"), 3),
        (PermissionError(errno.EACCES, "Permission denied", "the words"), 2),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "the words"), 2),
    ],
)
def test_an_exception_becomes_its_exit_code(
    cli: Cli, saved: Save, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    said = failing(cli, saved, monkeypatch, error)
    check(said, code, "the words", "")


def failing(cli: Cli, saved: Save, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Said:
    """A command whose work raises."""

    def work(*_: object, **__: object) -> None:
        raise error

    path = saved("r.json", latency("tiny", 1.0))
    monkeypatch.setattr("validation.comparison.compare", work)
    return cli("compare", path, path)


def test_a_disk_that_is_full_is_called_so(cli: Cli, saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    said = failing(cli, saved, monkeypatch, OSError(errno.ENOSPC, "No space left on device", "x.bin"))
    assert said.err.startswith("error: disk full while writing x.bin\n")


def test_a_package_that_a_device_does_not_have_is_3(cli: Cli, saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    said = failing(cli, saved, monkeypatch, ModuleNotFoundError("No module named 'onnx.helper'", name="onnx.helper"))
    check(said, 3, "this needs the Python package onnx", "pip install onnx")


def test_a_module_that_nobody_declares_is_our_bug(cli: Cli, saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    said = failing(cli, saved, monkeypatch, ModuleNotFoundError("No module named 'nunpy'", name="nunpy"))
    assert (said.code, "Traceback" in said.err) == (70, True)


def test_an_error_without_a_hint_is_one_line(cli: Cli, saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failing(cli, saved, monkeypatch, WrongCall("only this")).err == "error: only this\n"


def test_square_brackets_in_messages_stay(cli: Cli, saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    said = failing(cli, saved, monkeypatch, WrongCall("graphs[0] is [red]odd[/red]"))
    assert said.err == "error: graphs[0] is [red]odd[/red]\n"


def test_long_messages_are_one_line_where_nobody_watches(
    cli: Cli, saved: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert failing(cli, saved, monkeypatch, WrongCall("word " * 80 + "end")).err.count("\n") == 1


def test_an_unexpected_exception_is_our_bug(cli: Cli, saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    said = failing(cli, saved, monkeypatch, KeyError("surprise"))
    assert said.code == failure.BUG
    assert "Traceback" in said.err
    assert "KeyError: 'surprise'" in said.err
    assert "bug in rwkv-export. Please report it" in said.err.splitlines()[-1]


def test_an_os_error_that_is_nobodys_path_is_our_bug(cli: Cli, saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failing(cli, saved, monkeypatch, OSError(errno.EINVAL, "Invalid argument")).code == failure.BUG


def test_interrupted_is_130(cli: Cli, saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    said = failing(cli, saved, monkeypatch, KeyboardInterrupt())
    assert said.code == 130
    assert "Traceback" not in said.err


@pytest.mark.parametrize("word", ["--version", "--help"])
def test_a_reader_that_leaves_is_no_error(word: str) -> None:
    read, write = os.pipe()
    os.close(read)
    program = "from rwkv_export.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, word], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
