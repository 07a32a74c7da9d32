"""ARCHITECTURE.md and the import arrows, checked against the tree as git sees it."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("exporter/", "runtimes/", "validation/", "rwkv_export/")
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


def sources(*prefixes: str) -> list[Path]:
    return [ROOT / name for name in tracked() if name.endswith(".py") and name.startswith(prefixes)]


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


@pytest.fixture(scope="module")
def tree() -> str:
    """The annotated tree: the first fenced block that begins a line with `exporter/`."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.DOTALL)
    return next(block for block in blocks if re.search(r"^exporter/", block, flags=re.MULTILINE))


def entries(tree: str) -> Iterator[str]:
    """Its paths; folders end in a slash.

    A line is an indent, one or more names, two or more spaces, and what they are.
    """
    parents: list[tuple[int, str]] = []
    for line in filter(str.strip, tree.splitlines()):
        indent = len(line) - len(line.lstrip())
        parents = [(depth, folder) for depth, folder in parents if depth < indent]
        within = parents[-1][1] if parents else ""
        for name in re.split(r"\s{2,}", line.strip())[0].split():
            yield within + name
            if name.endswith("/"):
                parents.append((indent, within + name))


@pytest.fixture(scope="module")
def listed(tree: str) -> list[str]:
    return list(entries(tree))


def names(entry: str, path: str) -> bool:
    """Whether an entry, which may be a glob, is this file or a folder around it."""
    if entry.endswith("/"):
        return path.startswith(entry)
    return PurePosixPath(path).match(entry) and path.count("/") == entry.count("/")


def test_the_architecture_names_every_module(listed: list[str]) -> None:
    """One by one, by a glob, or by a folder that one line sums up."""
    parents = {entry for entry in listed if any(other.startswith(entry) for other in listed if other != entry)}
    exact = [entry for entry in listed if entry not in parents]
    modules = [str(path.relative_to(ROOT)) for path in sources(*PACKAGES) if path.name != "__init__.py"]
    assert len(modules) > 20
    assert [path for path in modules if not any(names(entry, path) for entry in exact)] == []


def test_the_architecture_names_everything_at_the_top(listed: list[str]) -> None:
    top = {name.partition("/")[0] + ("/" if "/" in name else "") for name in tracked()}
    assert top - set(listed) == set()


def test_the_architecture_names_nothing_that_does_not_exist(tree: str, listed: list[str]) -> None:
    assert len(listed) > 20
    assert [entry for entry in listed if not any(names(entry, path) for path in tracked())] == []
    mentioned = set(re.findall(r"[\w.]+\.(?:py|toml|md|txt|j2)\b", tree))
    assert mentioned - {PurePosixPath(path).name for path in tracked()} == set()


def test_the_tree_reader_understands_its_notation() -> None:
    lines = ("exporter/        what", "  models/   more", "    v4.py v7.py   with text.py", "  *.toml", "docs/")
    assert list(entries("\n".join(lines))) == [
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
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in sources(*PACKAGES)]
    assert statistics.median(lengths) < 200
