"""The lint: each rule fires on a program made for it and not on one like it; the command; what reports show of it."""

from __future__ import annotations

import gc
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mil_lint_cases
import mil_models
import pytest
from coremltools_quiet import coremltools
from mil_lint_cases import CASES, CONVOLUTION, PLAIN, Given, Pair, palettes

from runtimes.errors import BadArtifact, WrongCall
from validation.lint import checks
from validation.lint.findings import Lint
from validation.lint.linter import lint, lint_package
from validation.lint.rules import RULES, Severity

ROOT = Path(__file__).parents[2]
MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")


@pytest.fixture(scope="module", autouse=True)
def quick_conversions() -> Iterator[None]:
    """Every conversion ends in a collection of garbage, which is dear among a test run's objects and of no use."""
    gc.freeze()
    yield
    gc.unfreeze()


def fired(found: Lint) -> dict[str, int]:
    return {finding.rule: finding.count for finding in found.findings}


@pytest.mark.parametrize(("rule", "pair"), CASES, ids=[f"{index}-{rule}" for index, (rule, _) in enumerate(CASES)])
def test_a_rule_fires_on_what_it_is_for_and_only_there(rule: str, pair: Pair, tmp_path: Path) -> None:
    wrong = lint_package(mil_lint_cases.save(pair.wrong, tmp_path / "wrong.mlpackage"))
    right = lint_package(mil_lint_cases.save(pair.right, tmp_path / "right.mlpackage"))
    assert fired(wrong).get(rule) == pair.times
    assert rule not in fired(right)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mil_lint_cases.save(CONVOLUTION, tmp_path_factory.mktemp("good") / "good.mlpackage")


def test_a_program_as_the_engine_wants_it_has_no_finding(good: Path) -> None:
    found = lint_package(good)
    assert (found.findings, found.operations, found.trouble) == ((), 1, "")


def test_too_many_weights_in_one_package(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.mlpackage"
    shutil.copytree(good, path)
    os.truncate(path / WEIGHTS, 1_000_000_000)  # sparse: no byte of it is written
    assert fired(lint_package(path)) == {}
    os.truncate(path / WEIGHTS, 1_000_000_001)
    assert fired(lint_package(path)) == {"package-size": 1}


def test_weights_that_are_too_many_only_when_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mil_lint_cases.save(Given(palettes(1, 1)), tmp_path / "small.mlpackage")
    stored = (path / WEIGHTS).stat().st_size
    assert stored < 32 * 32 * 2
    monkeypatch.setattr(checks, "LIMIT", stored)
    assert fired(lint_package(path)) == {"expanded-size": 1}
    monkeypatch.setattr(checks, "LIMIT", 32 * 32 * 2)
    assert fired(lint_package(path)) == {}


def changed(package: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    """A copy whose main function went through `change`."""
    path = folder / "changed.mlpackage"
    shutil.copytree(package, path)
    model = coremltools.proto.Model_pb2.Model.FromString((path / MODEL).read_bytes())
    change(model.mlProgram.functions["main"])
    (path / MODEL).write_bytes(model.SerializeToString())
    return path


def test_an_input_of_any_length(good: Path, tmp_path: Path) -> None:
    def loosen(function: Any) -> None:
        function.inputs[0].type.tensorType.dimensions[2].unknown.variadic = False

    (finding,) = lint_package(changed(good, tmp_path, loosen)).findings
    assert (finding.rule, finding.places) == ("flexible-shape", ("x [1, 32, ?, 32]",))


def test_a_result_of_rank_six(good: Path, tmp_path: Path) -> None:
    def raise_rank(function: Any) -> None:
        result = function.block_specializations[function.opset].operations[-1].outputs[0].type.tensorType
        for _ in range(2):
            result.dimensions.add().constant.size = 1

    assert fired(lint_package(changed(good, tmp_path, raise_rank)))["rank-limit"] == 1
    assert "rank-five" not in fired(lint_package(tmp_path / "changed.mlpackage"))


def test_an_operation_that_gives_nothing_breaks_no_rule(good: Path, tmp_path: Path) -> None:
    def give_nothing(function: Any) -> None:
        for operation in function.block_specializations[function.opset].operations:
            if operation.type != "const":
                del operation.outputs[:]

    assert lint_package(changed(good, tmp_path, give_nothing)).findings == ()


def test_every_rule_has_a_check_and_a_case() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    public = {name for name, value in vars(checks).items() if callable(value) and value.__module__ == checks.__name__}
    assert {name.replace("_", "-") for name in public if name[0] != "_"} == set(names)
    apart = {"package-size", "expanded-size", "flexible-shape", "rank-limit"}
    assert {rule for rule, _ in CASES} | apart == set(names)


def test_functions_and_constants_are_named_where_there_are_several(tmp_path: Path) -> None:
    one = mil_lint_cases.save(Given(lambda x: mil_lint_cases.mb.exp(x=x)), tmp_path / "one.mlpackage")
    two = mil_lint_cases.save(PLAIN, tmp_path / "two.mlpackage")
    both = lint_package(mil_models.save_functions(tmp_path / "both.mlpackage", decode=one, prefill=two))
    assert [(finding.rule, finding.count) for finding in both.findings] == [("wide-range", 1)]
    assert both.findings[0].places[0].startswith("decode: exp ")
    assert both.operations == 2


def test_findings_come_errors_first_and_name_the_first_places(tmp_path: Path) -> None:
    found = lint_package(mil_models.save(tmp_path / "model.mlpackage", precision="fp32"))
    order = [Severity(finding.severity) for finding in found.findings]
    assert order == sorted(order, key=[*Severity].index)
    assert found.findings[0].rule == "fp32-compute"
    assert found.findings[0].count > len(found.findings[0].places) == 3


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="does not name the package's model"):
        lint([tmp_path / "none.mlpackage"])
    with pytest.raises(WrongCall, match="not an artifact"):
        lint([tmp_path / "none"])


def test_the_page_has_the_rules_of_the_table() -> None:
    text = (ROOT / "docs" / "lint.md").read_text(encoding="utf-8")
    section = text[text.index("## Rules") :]
    shown = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in re.findall(r"^\| `.*$", section, re.M)]
    assert shown == [
        [f"`{rule.name}`", rule.severity.value, rule.what, rule.why, rule.source, rule.fix] for rule in RULES
    ]
