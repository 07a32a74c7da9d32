"""The wheel that the source distribution gives: the packages, whole and alone, and metadata that an index can show."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("exporter", "runtimes", "rwkv_export", "validation")
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def build(what: str, folder: Path, out: Path) -> Path:
    """What setuptools makes of a folder, in place."""
    out.mkdir()
    subprocess.run([sys.executable, "-c", BUILD, what, out], cwd=folder, capture_output=True, check=True)
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("packaging")
    names = (*PACKAGES, "docs", "tests", "pyproject.toml", "MANIFEST.in", "LICENSE", "constraints.txt")
    for path in [ROOT / name for name in names] + list(ROOT.glob("*.md")):
        copy = folder / "tree" / path.name
        if path.is_dir():
            shutil.copytree(path, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(path, copy)
    with tarfile.open(build("build_sdist", folder / "tree", folder / "sdist")) as packed:
        packed.extractall(folder, filter="data")
    return folder / f"rwkv_export-{PROJECT['version']}"


@pytest.fixture(scope="module")
def wheel(source: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(build("build_wheel", source, source.parent / "wheel"))


def test_the_wheel_of_the_source_distribution_has_every_file_of_the_packages_and_no_other(
    wheel: zipfile.ZipFile,
) -> None:
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    own = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    packed = {name for name in wheel.namelist() if ".dist-info" not in PurePosixPath(name).parts[0]}
    assert packed == own
    assert {f"{package}/py.typed" for package in PACKAGES} <= packed


def test_the_source_distribution_has_the_guides_and_no_tests(source: Path) -> None:
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "constraints.txt", "docs/api.md", "docs/devices/ios.md"):
        assert (source / name).is_file(), name
    assert not (source / "tests").exists()


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_the_metadata_leads_nowhere_that_an_index_does_not_have(wheel: zipfile.ZipFile) -> None:
    found = metadata(wheel)
    assert (found["Version"], found["License-Expression"]) == (PROJECT["version"], "Apache-2.0")
    assert found["License-File"] == "LICENSE"
    assert "](" not in found.get_payload()
    extras = set(PROJECT["optional-dependencies"])
    assert set(found.get_all("Provides-Extra")) == extras


def test_dev_has_every_extra() -> None:
    extras = set(PROJECT["optional-dependencies"]) - {"dev"}
    assert PROJECT["optional-dependencies"]["dev"][0] == f"rwkv-export[{','.join(sorted(extras))}]"
