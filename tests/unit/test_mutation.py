"""The list of planted faults fits the tree: each applies once, still compiles, and names tests that are there."""

from __future__ import annotations

import ast

import pytest

from tests.mutation import plan
from tests.mutation.plan import ROOT, Fault

FAULTS = plan.read()


def functions_in(path: str) -> set[str]:
    """Names of the functions at the top of a file."""
    module = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in module.body if isinstance(node, ast.FunctionDef)}


def test_there_are_faults_in_every_area_of_one_name_each() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) > 60
    assert {fault.file.partition("/")[0] for fault in FAULTS} == {"exporter", "runtimes", "validation", "rwkv_export"}
    versions = {"v4", "v5", "v6", "v7", "v7a"}
    assert {fault.file for fault in FAULTS} > {f"exporter/models/{version}.py" for version in versions}


@pytest.mark.parametrize("path", sorted({fault.file for fault in FAULTS}))
def test_a_fault_applies_once_and_is_another_program(path: str) -> None:
    sound = (ROOT / path).read_text(encoding="utf-8")
    before = ast.dump(ast.parse(sound))
    for fault in FAULTS:
        if fault.file == path:
            assert ast.dump(ast.parse(fault.planted(sound), path)) != before, fault.name


def test_what_does_not_apply_once_is_refused() -> None:
    for text in ("", "one one"):
        with pytest.raises(ValueError, match="expected once"):
            Fault("a name", "file.py", "one", "two", ()).planted(text)


def test_the_tests_that_must_notice_are_there() -> None:
    named = {name for fault in FAULTS for name in fault.tests}
    assert all(fault.tests for fault in FAULTS)
    for path in {name.partition("::")[0] for name in named}:
        functions = {name.partition("::")[2].partition("[")[0] for name in named if name.startswith(path)}
        assert functions - {""} <= functions_in(path), path
