"""Lints artifacts: finds the Core ML packages in one, applies every rule, and groups what was found by rule."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from inspect import signature
from itertools import chain
from pathlib import Path, PurePosixPath

from exporter.progress import Progress, silent
from runtimes import manifest
from runtimes.contract import Artifact
from runtimes.errors import Missing, WrongCall
from runtimes.mil import protobuf
from validation.lint import checks
from validation.lint.findings import Finding, Lint
from validation.lint.graph import Program, read_program
from validation.lint.rules import RULES, Rule, Severity

PLACES = 3
"""Places of a finding that are named."""

TARGETS = ("coreml-ane",)
"""Targets whose artifacts `validate` lints unasked: only they promise the Neural Engine."""

SUFFIX = ".mlpackage"


def lint(paths: Sequence[Path], progress: Progress = silent) -> tuple[Lint, ...]:
    """Every artifact, folder of artifacts, or .mlpackage from elsewhere, the hashes of artifacts verified.

    Raises WrongCall where one holds no Core ML program, BadArtifact where it cannot be read, Missing without
    coremltools.
    """
    found = []
    for path in paths:
        if path.suffix == SUFFIX and not (path / manifest.FILE_NAME).is_file():
            with progress(f"linting {path}"):
                found.append(lint_package(path))
            continue
        for folder in manifest.find(path):
            with progress(f"linting {folder}"):
                found.append(lint_artifact(manifest.open_artifact(folder)))
    return tuple(found)


def lint_artifact(artifact: Artifact) -> Lint:
    """Every finding in an artifact, errors first; raises as `lint`."""
    _require()
    target = artifact.manifest.target
    with tempfile.TemporaryDirectory(prefix="rwkv-export-") as folder:
        programs = [*_packages(artifact), *_delegated(artifact, Path(folder))]
    if not programs:
        raise WrongCall(
            f"{artifact.folder} holds no Core ML program to lint, only {artifact.manifest.graphs[0].file}",
            hint="lint artifacts of coreml, coreml-ane or executorch-coreml",
        )
    return _linted(artifact.folder.resolve().name, target.name, target.precision, programs)


def lint_package(folder: Path) -> Lint:
    """The same for a .mlpackage from elsewhere, without a manifest."""
    _require()
    return _linted(folder.resolve().name, "", "", [read_program(folder, folder.name)])


def _require() -> None:
    if protobuf.generated_files() is None:
        raise Missing("reading Core ML programs needs the Python package coremltools, which is not installed")


def _linted(name: str, target: str, precision: str, programs: list[Program]) -> Lint:
    found = (_finding(rule, programs) for rule in RULES)
    findings = sorted((finding for finding in found if finding), key=lambda each: [*Severity].index(each.severity))
    count = sum(len(graph.ops) for program in programs for graph in program.graphs)
    return Lint(name, target, precision, count, tuple(findings))


def _finding(rule: Rule, programs: list[Program]) -> Finding | None:
    places = list(chain.from_iterable(_places(rule, program, len(programs) > 1) for program in programs))
    if not places:
        return None
    return Finding(rule.name, rule.severity, len(places), tuple(places[:PLACES]), rule.what, rule.fix)


def _places(rule: Rule, program: Program, several: bool) -> Iterator[str]:
    """Where a rule fires, after the names of package and function where there are more than one."""
    check = vars(checks)[rule.name.replace("-", "_")]
    package = f"{program.name}: " if several else ""
    if "program" in signature(check).parameters:
        yield from (f"{package}{place}" for place in check(program))
        return
    for graph in program.graphs:
        function = f"{graph.name}: " if len(program.graphs) > 1 else ""
        yield from (f"{package}{function}{place}" for place in check(graph))


def _packages(artifact: Artifact) -> Iterator[Program]:
    """Every package among the manifest's files, whichever graphs or parts of graphs they are."""
    paths = (PurePosixPath(file.path) for file in artifact.manifest.files)
    folders = dict.fromkeys(parent for path in paths for parent in path.parents if parent.suffix == SUFFIX)
    for folder in folders:
        yield read_program(artifact.folder / folder, str(folder))


def _delegated(artifact: Artifact, scratch: Path) -> Iterator[Program]:
    """Every package that a Core ML delegate has in an ExecuTorch program."""
    files = dict.fromkeys(graph.file for graph in artifact.manifest.graphs if graph.file.endswith(".pte"))
    if files and not find_spec("executorch"):
        raise Missing("reading .pte files needs the Python package executorch, which is not installed")
    for file in files:
        from runtimes.mil import from_pte
        from runtimes.pte.program import Program as Saved

        saved, unpacked = Saved(artifact.folder / file), dict[bytes, str]()
        for graph in artifact.manifest.graphs:
            method = graph.function or "forward"
            if graph.file == file and from_pte.DELEGATE in saved.calls(method):
                unpacked.setdefault(from_pte.call(saved, method).data, f"{file} {method}")
        for number, (data, name) in enumerate(unpacked.items()):
            yield read_program(from_pte.unpack(data, scratch / f"{number}"), name)
