"""What docs/security.md claims: its tests are there, and a locked install takes what is tested, by its hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements" / "demo.lock"
PINNED = re.compile(r"^([a-z0-9._-]+)==([^\s;]+)", re.MULTILINE)


def test_every_claim_names_a_test_that_is_there() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    there = {
        name
        for path in ROOT.glob("tests/*/test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(named) > 10
    assert not named - there


def pins(path: Path) -> dict[str, str]:
    return {name.replace("_", "-").replace(".", "-"): version for name, version in PINNED.findall(path.read_text())}


def test_the_lock_has_the_versions_of_the_constraints() -> None:
    lock, tested = pins(LOCK), pins(ROOT / "constraints.txt")
    differing = {name: (lock[name], tested[name]) for name in lock.keys() & tested.keys() if lock[name] != tested[name]}
    assert not differing, "run the command at the top of requirements/demo.lock"
    assert len(lock.keys() & tested.keys()) > 60


def test_the_lock_has_everything_that_the_package_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[^A-Za-z0-9._-]", each)[0].lower().replace("_", "-") for each in project["dependencies"]}
    assert needed <= pins(LOCK).keys(), "run the command at the top of requirements/demo.lock"


def test_every_file_of_the_lock_has_a_hash() -> None:
    text = LOCK.read_text()
    entries = [entry for entry in re.split(r"^(?=[a-z])", text, flags=re.MULTILINE) if entry[0] != "#"]
    assert len(entries) == len(pins(LOCK))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)
    assert "://" not in text
