"""docs/api.md: it names what is public and nothing else, its program runs, and mypy --strict accepts it elsewhere."""

from __future__ import annotations

import importlib
import re
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("exporter", "runtimes", "validation")
TEXT = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
TYPES = """[mypy]
strict = true

[mypy-torch.*,onnx.*,onnxscript.*,onnx_ir.*,matplotlib.*,jinja2.*,PIL.*]
follow_imports = skip
"""
"""Without the types of others that none of ours are made of: 4 s of a processor, not 20."""
PROGRAM = "\n".join(re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE))


def test_the_page_names_what_is_public_and_nothing_else() -> None:
    cells = re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE)
    shown = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    public = [f"{package}.{name}" for package in PACKAGES for name in importlib.import_module(package).__all__]
    assert sorted(shown) == sorted(public)
    for name in shown:
        package, _, own = name.partition(".")
        assert getattr(importlib.import_module(package), own).__doc__, name


@pytest.mark.slow
def test_the_program_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("program.py")
    assert (tmp_path / "before.json").is_file()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The Python of an environment that has this package as pip would install it, and all else of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")}))
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for package in PACKAGES:
        (site / package).symlink_to(ROOT / package)
    return tmp_path / "env" / "bin" / "python"


@pytest.mark.slow
def test_a_consumer_is_type_checked_against_the_installed_package(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mypy.ini").write_text(TYPES)
    (tmp_path / "good.py").write_text(PROGRAM, encoding="utf-8")
    (tmp_path / "bad.py").write_text("import validation\nvalidation.validat([])\nvalidation.exit_code(3)\n")
    command = [sys.executable, "-m", "mypy", "--python-executable", installed, "good.py", "bad.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    said = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [line.split(":")[:2] for line in said] == [["bad.py", "2"], ["bad.py", "3"]], done.stdout
