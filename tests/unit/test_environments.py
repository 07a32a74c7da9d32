"""Environments of their own: whole or not there, made again when what is in them should change, refused where unfit."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from exporter import environments
from runtimes.environments import MARK, Environment
from runtimes.errors import Missing, WrongCall
from rwkv_export.main import run

pytestmark = pytest.mark.slow

EMPTY = Environment(
    name="empty",
    summary="nothing at all",
    pins=(),
    resolved=(),
    imports=("json",),
    systems=(("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64")),
    pythons=((3, 11), (3, 99)),
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path


def test_it_is_made_once_and_told_apart_from_half_a_one_and_an_older_one(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert EMPTY.state() == "absent"
    assert str(EMPTY.missing()) == "the empty environment is absent, run `rwkv-export setup empty`"
    folder = environments.make(EMPTY)
    assert folder == cache / "rwkv-export" / "environments" / "empty"
    assert (EMPTY.state(), EMPTY.missing()) == ("ready", None)
    asked = [str(EMPTY.python), "-c", "import sys; print(sys.prefix)"]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() == str(folder)

    with monkeypatch.context() as patch:
        patch.setattr(environments, "_run", None)  # would fail if it were called
        environments.make(EMPTY)

    assert replace(EMPTY, pins=("six==1.17.0",)).state() == "outdated"
    (folder / MARK).write_text("{")
    assert EMPTY.state() == "unfinished"


def test_one_that_cannot_be_finished_leaves_nothing_and_says_what_pip_said(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanting = replace(EMPTY, pins=("nothing-of-this-name==1.0",))
    real = environments._run

    def without_venv(command: list[str], *, hint: str) -> None:
        if "venv" in command:
            (wanting.folder / "bin").mkdir(parents=True)
            wanting.python.symlink_to(command[0])
        else:
            real(command, hint=hint)

    monkeypatch.setattr(environments, "_run", without_venv)
    with pytest.raises(Missing, match=r"-m pip install failed: ERROR: .*nothing-of-this-name==1\.0"):
        environments.make(wanting)
    assert wanting.state() == "absent"


def test_a_machine_or_a_python_that_does_not_fit_is_told_in_a_sentence(cache: Path) -> None:
    elsewhere = replace(EMPTY, systems=(("Plan9", "mips"),))
    with pytest.raises(Missing, match="the empty environment is for Plan9 on mips, this is ") as raised:
        environments.make(elsewhere)
    assert raised.value.exit_code == 3
    assert "needs Python 3.2 to 3.5, this is 3." in str(replace(EMPTY, pythons=((3, 2), (3, 5))).missing())
    assert not list(cache.rglob("empty"))


def test_the_command_lists_what_there_is_and_names_what_there_is_not(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["setup", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} == set(environments.known())
    assert all(row["state"] == "absent" and row["missing"] for row in rows)
    assert run(["setup", "rnkk"]) == WrongCall.exit_code
    assert "did you mean 'rknn'?" in capsys.readouterr().err


def test_every_pin_is_exact() -> None:
    for environment in environments.known().values():
        assert all(pin.count("==") == 1 for pin in (*environment.pins, *environment.resolved))
