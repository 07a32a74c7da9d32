"""Names that leave a folder, links, and altered bytes are refused before anything is opened, by every command."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

import runtimes
from exporter.checkpoint import open_checkpoint
from runtimes import manifest
from runtimes.backends import eager
from runtimes.errors import BadArtifact, BadCheckpoint
from rwkv_export.main import run
from tests.conftest import Exports
from tests.fuzz.readers import pt2_archive, pth

pytestmark = pytest.mark.slow

LEAVING = ["../x", "a/../../x", "/etc/passwd", "C:\\x", "c:x", "a\\..\\x", "\\\\host\\share\\x"]


@pytest.fixture
def artifact(exports: Exports, tmp_path: Path) -> Path:
    """A copy that may be altered."""
    return Path(shutil.copytree(exports("4", "torch"), tmp_path / "artifact"))


def linked_file(artifact: Path, elsewhere: Path) -> None:
    (artifact / "decode.pt2").rename(elsewhere)
    (artifact / "decode.pt2").symlink_to(elsewhere)


def linked_folder(artifact: Path, elsewhere: Path) -> None:
    elsewhere.mkdir()
    (artifact / "decode.pt2").rename(elsewhere / "decode.pt2")
    (artifact / "graphs").symlink_to(elsewhere)
    path = artifact / manifest.FILE_NAME
    path.write_text(path.read_text().replace("decode.pt2", "graphs/decode.pt2"))


@pytest.mark.parametrize("change", [linked_file, linked_folder])
def test_a_link_in_an_artifact_is_refused_whatever_it_leads_to(
    artifact: Path, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    change(artifact, tmp_path / "elsewhere")
    with pytest.raises(BadArtifact, match="is a link"):
        runtimes.open_session(artifact)


def test_a_link_to_an_artifact_is_the_artifact(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(artifact)
    runtimes.open_session(tmp_path / "link").close()


@pytest.mark.parametrize("name", LEAVING)
def test_an_index_that_names_files_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    save_file(pth.TENSORS, tmp_path / "model.safetensors.elsewhere")
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": dict.fromkeys(pth.TENSORS, name)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadCheckpoint, match="outside its folder"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", [*LEAVING, "archive/data/weights/../../../x"])
def test_a_program_archive_with_such_a_member_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "decode.pt2"
    path.write_bytes(next(pt2_archive.seeds(tmp_path)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(BadArtifact, match=r"can run code|not a plain"):
        eager.refuse_code(path)


def test_members_of_a_checkpoint_are_never_written_anywhere(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / "model.pth"
    path.write_bytes(next(pth.seeds(tmp_path)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../evil", b"x")
    with pytest.raises(BadCheckpoint, match="evil"):
        open_checkpoint(path)
    assert {file.name for file in tmp_path.rglob("*")} == {"in", "model.pth"}


def flip(path: Path) -> None:
    """One bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("validate", "--steps", "4"), 1),
        (("bench", "--tokens", "1", "--prompt", "1"), 1),
        (("generate", "Once"), 2),
        (("inspect",), 2),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_flipped_bit_is_one_message(
    artifact: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int
) -> None:
    path = artifact / "decode.pt2"
    before = path.stat()
    flip(path)
    document = artifact / manifest.FILE_NAME  # generate looks for a tokenizer first
    document.write_text(document.read_text().replace('"kind": "none"', '"kind": "bytes"'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    command, *options = arguments
    assert run([command, str(artifact), *options]) == code
    printed = capsys.readouterr()
    assert f"{path} does not match its SHA-256 in the manifest" in printed.out + printed.err
    assert "Traceback" not in printed.err
