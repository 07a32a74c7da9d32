"""`lint` from artifact to exit code, and what `validate` and its reports show of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from runtimes.mil import protobuf
from rwkv_export.main import run
from validation import outcome
from validation.lint import checks, linter
from validation.lint.findings import Finding, Lint
from validation.lint.verdict import weighed
from validation.outcome import Outcome
from validation.reports import html, markdown

from .conftest import Cli, parity, results

pytestmark = pytest.mark.slow

FOUND = Finding("tile", "warning", 7, ("tile a_<b>",), "tile & more", "broadcast")
WRONG = Finding("rank-limit", "error", 1, ("relu c",), "tensors of rank six", "reshape")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model as Core ML in float32 and float16, and another with it as PyTorch."""
    out = tmp_path_factory.mktemp("out")
    model = out / "tiny.pth"
    assert run(["synth", "-q", "--layers", "1", "--width", "64", "--vocab", "257", "-o", str(model)]) == 0
    for target, precision in (("coreml", "fp32"), ("coreml", "fp16"), ("torch", "fp32")):
        assert run(["export", str(model), "-q", "-t", target, "-p", precision, "-o", str(out / target)]) == 0
    return out


def test_errors_are_1_and_none_is_0(cli: Cli, artifacts: Path) -> None:
    said = cli("lint", "-q", artifacts / "coreml" / "tiny.coreml.fp32")
    assert said.code == 1
    assert "fp32-compute" in said.out
    assert "lint of tiny.coreml.fp32: 1 error, " in said.out
    said = cli("lint", "-q", artifacts / "coreml" / "tiny.coreml.fp16", "--json")
    (document,) = json.loads(said.out)
    assert said.code == 0
    assert {finding["severity"] for finding in document["findings"]} == {"warning", "note"}
    assert document["operations"] > 30


def test_a_folder_of_artifacts_is_linted_whole(cli: Cli, artifacts: Path) -> None:
    found = json.loads(cli("lint", "-q", "--json", artifacts / "coreml").out)
    assert [each["artifact"] for each in found] == ["tiny.coreml.fp16", "tiny.coreml.fp32"]


def test_a_package_alone_has_the_findings_of_its_artifact(cli: Cli, artifacts: Path) -> None:
    folder = artifacts / "coreml" / "tiny.coreml.fp16"
    whole, alone = (
        json.loads(cli("lint", "-q", "--json", path).out)[0] for path in (folder, folder / "model.mlpackage")
    )
    assert whole["findings"] == alone["findings"]
    assert (alone["artifact"], alone["target"]) == ("model.mlpackage", "")


def test_nothing_to_lint_is_2(cli: Cli, artifacts: Path) -> None:
    said = cli("lint", "-q", artifacts / "torch")
    assert (said.code, said.out) == (2, "")
    assert "holds no Core ML program" in said.err


def test_a_changed_artifact_is_2(cli: Cli, artifacts: Path, tmp_path: Path) -> None:
    import shutil

    path = tmp_path / "changed"
    shutil.copytree(artifacts / "coreml" / "tiny.coreml.fp16", path)
    with (path / "model.mlpackage" / "Manifest.json").open("a") as stream:
        stream.write(" ")
    assert cli("lint", "-q", path).code == 2


def test_validate_lints_what_promises_the_engine_and_nothing_else(
    cli: Cli, artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("validate", artifacts / "coreml" / "tiny.coreml.fp16", "-q", "--steps", "4", "--json", tmp_path / "r.json")
    assert "lint of" not in cli(*words).out
    assert outcome.read(tmp_path / "r.json").lint == ()
    monkeypatch.setattr(linter, "TARGETS", ("coreml",))
    said = cli(*words)
    assert said.code == 0, said.out
    assert "lint of tiny.coreml.fp16: " in said.out
    (found,) = outcome.read(tmp_path / "r.json").lint
    assert found == linter.lint([artifacts / "coreml" / "tiny.coreml.fp16"])[0]


def test_what_would_keep_it_off_the_engine_fails_an_artifact_that_promises_it(
    cli: Cli, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linter, "TARGETS", ("coreml",))
    monkeypatch.setattr(checks, "LIMIT", 1000)  # bytes of a package
    words = ("validate", artifacts / "coreml" / "tiny.coreml.fp16", "-q", "--steps", "4")
    said = cli(*words)
    assert said.code == 1
    assert "the Neural Engine would not run it: more than 1.0 GB of weights in one package" in " ".join(
        said.out.split()
    )
    assert cli(*words, "--no-lint").code == 0
    assert "lint of" not in cli(*words, "--no-lint").out


@pytest.mark.parametrize(
    ("before", "compute", "found", "after"),
    [
        (Outcome.PASS, "float16", WRONG, Outcome.FAIL),
        (Outcome.FALLBACK, "float16", WRONG, Outcome.FAIL),
        (Outcome.PASS, "float32", WRONG, Outcome.PASS),
        (Outcome.MISSING, "float16", WRONG, Outcome.MISSING),
        (Outcome.PASS, "float16", FOUND, Outcome.PASS),
    ],
)
def test_only_errors_fail_and_only_what_would_pass(
    before: Outcome, compute: str, found: Finding, after: Outcome
) -> None:
    row = parity("tiny", before)
    made = weighed(row, linted(found).lint[0], compute=compute)
    assert (made.outcome, made == row) == (after, after is before)
    assert weighed(row, None, compute=compute) == row


def test_what_validate_cannot_lint_says_why(
    cli: Cli, artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linter, "TARGETS", ("coreml",))
    monkeypatch.setattr(protobuf, "generated_files", lambda: None)
    words = ("validate", artifacts / "coreml" / "tiny.coreml.fp16", "-q", "--steps", "4", "--json", tmp_path / "r.json")
    assert "lint of tiny.coreml.fp16: not done, reading Core ML programs needs" in cli(*words).out
    (found,) = outcome.read(tmp_path / "r.json").lint
    assert (found.findings, found.operations) == ((), 0)
    assert "coremltools, which is not installed" in found.trouble
    assert cli("lint", artifacts / "coreml").code == 3


def linted(*findings: Finding, trouble: str = "") -> outcome.Results:
    lint = Lint("tiny.coreml-ane.fp16", "coreml-ane", "fp16", 0 if trouble else 321, findings, trouble)
    return replace(results(parity("tiny.coreml-ane.fp16")), lint=(lint,))


def test_reports_show_findings_only_where_something_was_linted() -> None:
    page, text = html.render([linted(WRONG, FOUND)]), markdown.render(linted(WRONG, FOUND))
    assert 'id="lint"' in page
    assert page.index("rank-limit") < page.index("tile &amp; more")
    assert "tile a_&lt;b&gt;" in page
    assert "| error | rank-limit |" in text
    assert "tile &amp; more, first in tile a\\_&lt;b>; broadcast" in text
    for plain in (html.render([results(parity("tiny"))]), markdown.render(results(parity("tiny")))):
        assert "Neural Engine" not in plain
        assert "Linted" not in plain


def test_reports_say_that_nothing_was_found_and_why_nothing_was_looked_at() -> None:
    assert "nothing found in 321 operations" in html.render([linted()])
    assert "nothing in 321 operations" in markdown.render(linted())
    assert "not done: no coremltools" in html.render([linted(trouble="no coremltools")])
    assert "no coremltools" in markdown.render(linted(trouble="no coremltools"))
