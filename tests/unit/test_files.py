"""Text files appear whole or not at all, also when two writers meet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtimes.files import write_text_atomically


def test_text_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("old and longer")
    write_text_atomically(path, "Größe\n")
    assert path.read_bytes() == "Größe\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "half of it \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_does_not_touch_what_another_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, fsync = tmp_path / "results.json", os.fsync

    def meet(handle: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        write_text_atomically(path, "second")
        assert path.read_text() == "second"

    monkeypatch.setattr(os, "fsync", meet)
    write_text_atomically(path, "first")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "ours", "text")
    (tmp_path / "theirs").write_text("text")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode
