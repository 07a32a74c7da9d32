"""ARCHITECTURE.md and the import arrows, checked against the tree as git sees it."""

from __future__ import annotations

import ast
import fnmatch
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("exporter", "runtimes", "validation", "rwkv_export")
NUMPY_ONLY = ("__init__", "contract", "errors", "manifest", "registry", "schema", "session")
"""The files of runtimes/ that are copied to devices and may need numpy and the standard library only."""


@cache
def tracked() -> tuple[str, ...]:
    """Files git knows or would add, as posix paths."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(line for line in listed.stdout.splitlines() if (ROOT / line).is_file())


def sources(*folders: str) -> list[Path]:
    return [ROOT / name for name in tracked() if name.endswith(".py") and name.startswith(folders)]


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names of everything a file imports, at its top or within functions; relative imports resolved."""
    found = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def reaches(path: Path, *packages: str) -> list[str]:
    """Which imports of a file are in these packages."""
    return sorted(name for name in imports(path) if name.startswith(tuple(f"{package}." for package in packages))) + [
        name for name in imports(path) if name in packages
    ]


def tree_entries(text: str) -> Iterator[str]:
    """Paths of the annotated tree, the first fenced block that names `exporter/`; folders end in a slash.

    A line is an indent, one or more names, two or more spaces, and what they are.
    """
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.DOTALL)
    block = next(block for block in blocks if re.search(r"^\W*exporter/", block, flags=re.MULTILINE))
    parents: list[tuple[int, str]] = []
    for line in block.splitlines():
        bare = line.lstrip()
        if not bare:
            continue
        indent = len(line) - len(bare)
        parents = [(depth, folder) for depth, folder in parents if depth < indent]
        within = parents[-1][1] if parents else ""
        for name in re.split(r"\s{2,}", bare)[0].replace(",", " ").split():
            yield within + name
            if name.endswith("/"):
                parents = [*((depth, folder) for depth, folder in parents if depth < indent), (indent, within + name)]


@pytest.fixture(scope="module")
def listed() -> list[str]:
    return list(tree_entries((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")))


def covered(path: str, entries: list[str]) -> bool:
    """Whether a file is named, matches a glob, or lies in a folder that is summarised by one line."""
    leaves = [
        entry
        for entry in entries
        if entry.endswith("/") and not any(e.startswith(entry) for e in entries if e != entry)
    ]
    return any(fnmatch.fnmatch(path, entry) for entry in entries) or path.startswith(tuple(leaves))


def test_the_architecture_names_every_module(listed: list[str]) -> None:
    modules = [name for name in tracked() if name.endswith(".py") and name.startswith(tuple(f"{p}/" for p in PACKAGES))]
    missing = [name for name in modules if not name.endswith("__init__.py") and not covered(name, listed)]
    assert len(modules) > 20
    assert not missing


def test_the_architecture_names_everything_at_the_top(listed: list[str]) -> None:
    top = {name.partition("/")[0] + ("/" if "/" in name else "") for name in tracked()}
    named = {entry.partition("/")[0] + ("/" if "/" in entry else "") for entry in listed}
    assert top - named == set()


def test_the_architecture_names_nothing_that_does_not_exist(listed: list[str]) -> None:
    assert len(listed) > 20
    gone = [entry for entry in listed if not any(fnmatch.fnmatch(name, f"{entry}*") for name in tracked())]
    assert not gone


def test_the_tree_reader_understands_its_notation() -> None:
    lines = (
        "```",
        "exporter/        what",
        "  models/   more",
        "    v4.py v7.py   with text.py",
        "  *.toml",
        "docs/",
        "```",
    )
    text = "\n".join(lines)
    assert list(tree_entries(text)) == [
        "exporter/",
        "exporter/models/",
        "exporter/models/v4.py",
        "exporter/models/v7.py",
        "exporter/*.toml",
        "docs/",
    ]


@pytest.mark.parametrize(
    ("folder", "never"),
    [
        ("runtimes", ("exporter", "validation", "rwkv_export")),
        ("exporter", ("validation", "rwkv_export")),
        ("validation", ("rwkv_export",)),
    ],
)
def test_arrows_point_one_way(folder: str, never: tuple[str, ...]) -> None:
    files = sources(f"{folder}/")
    assert files
    assert {str(path): reaches(path, *never) for path in files if reaches(path, *never)} == {}


def test_model_versions_know_no_target() -> None:
    files = sources("exporter/models/")
    assert files
    assert {str(path): reaches(path, "exporter.targets") for path in files if reaches(path, "exporter.targets")} == {}


def test_targets_know_no_model_version() -> None:
    files = sources("exporter/targets/")
    versions = [f"exporter.models.{path.stem}" for path in sources("exporter/models/v")]
    assert files
    assert versions
    assert {str(path): reaches(path, *versions) for path in files if reaches(path, *versions)} == {}


@pytest.mark.parametrize("name", NUMPY_ONLY)
def test_what_is_copied_to_devices_needs_only_numpy(name: str) -> None:
    tops = {dotted.partition(".")[0] for dotted in imports(ROOT / "runtimes" / f"{name}.py")}
    assert tops - set(sys.stdlib_module_names) <= {"numpy", "runtimes"}


def test_half_of_the_files_are_short() -> None:
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in sources(*(f"{p}/" for p in PACKAGES))]
    assert statistics.median(lengths) < 200
