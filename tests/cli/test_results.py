"""What `report`, `compare` and the tables make of results: for people, for programs, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rwkv_export import qualities, tables
from rwkv_export.options import STDOUT
from rwkv_export.results import deliver, deliver_many, kept
from validation import outcome
from validation.outcome import Outcome

from .conftest import Cli, latency, parity, quality, results

Save = Callable[..., Path]


def test_report_writes_one_page_about_all_files(cli: Cli, saved: Save, tmp_path: Path) -> None:
    files = saved("p.json", parity("tiny.onnx-cpu.fp32")), saved("l.json", latency("tiny.onnx-cpu.fp32", 1.5))
    said = cli("report", *files, "-o", tmp_path / "page.html")
    assert (said.code, said.out) == (0, "")
    assert said.err == f"wrote {tmp_path / 'page.html'}\n"
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert "tiny.onnx-cpu.fp32" in page
    assert not list(tmp_path.glob(".*.part"))


def test_quiet_says_nothing(cli: Cli, saved: Save, tmp_path: Path) -> None:
    said = cli("report", saved("p.json", parity("tiny")), "-o", tmp_path / "page.html", "--quiet")
    assert (said.out, said.err) == ("", "")


def test_compare_finds_what_got_slower(cli: Cli, saved: Save) -> None:
    said = cli("compare", saved("old.json", latency("tiny", 1.0)), saved("new.json", latency("tiny", 2.0)))
    assert said.code == 1
    assert "slower" in said.out.splitlines()[0]
    assert said.out.splitlines()[-1] == "1 changed, 1 the same"


def test_compare_of_equal_results_is_0(cli: Cli, saved: Save) -> None:
    path = saved("r.json", latency("tiny", 1.0), parity("tiny"))
    said = cli("compare", path, path)
    assert said.code == 0
    assert said.out.startswith("0 changed, ")


def test_compare_says_on_stderr_what_else_changed(cli: Cli, saved: Save, tmp_path: Path) -> None:
    old = saved("old.json", latency("tiny", 1.0))
    found = outcome.read(old)
    outcome.write(replace(found, machine=replace(found.machine, packages={"torch": "2.14.0"})), tmp_path / "new.json")
    said = cli("compare", old, tmp_path / "new.json")
    assert said.err == "not the same machine or packages: torch: absent, now 2.14.0\n"
    assert cli("compare", old, tmp_path / "new.json", "--quiet").err == ""
    assert cli("compare", old, old).err == ""


def test_compare_says_where_a_name_stands_for_other_files(cli: Cli, saved: Save) -> None:
    files = []
    for digest in ("a" * 64, "b" * 64):
        row = parity("tiny")
        files.append(saved(f"{digest[0]}.json", replace(row, identity=replace(row.identity, digest=digest))))
    assert cli("compare", *files).err == "not the same artifact: tiny has other files than before\n"


def test_compare_in_json_is_every_change(cli: Cli, saved: Save) -> None:
    said = cli("compare", saved("o.json", parity("a")), saved("n.json", parity("a", Outcome.FAIL, "why")), "--json")
    changes = json.loads(said.out)
    assert said.code == 1
    assert [change["verdict"] for change in changes if change["metric"] == "parity"] == ["outcome changed"]


def test_compare_passes_its_settings_on(cli: Cli, saved: Save) -> None:
    files = saved("old.json", latency("tiny", 1.0)), saved("new.json", latency("tiny", 2.0))
    assert cli("compare", *files, "--slower", "3").code == 0


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([Outcome.PASS], 0),
        ([Outcome.PASS, Outcome.FAIL], 1),
        ([Outcome.FALLBACK], 1),
        ([Outcome.SUSPICIOUS], 1),
        ([Outcome.ERROR, Outcome.MISSING], 1),
        ([Outcome.PASS, Outcome.MISSING], 3),
    ],
)
def test_the_exit_code_is_honest(rows: list[Outcome], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert deliver(results(*(parity(f"tiny{index}", row, "why") for index, row in enumerate(rows)))) == code


@pytest.mark.parametrize("order", [1, -1])
def test_one_machine_that_lacks_something_does_not_hide_that_another_is_wrong(order: int, tmp_path: Path) -> None:
    outcomes = {"a": Outcome.PASS, "b": Outcome.MISSING, "c": Outcome.FAIL}
    found = [results(parity("tiny", row, "why")) for row in outcomes.values()]
    apart = [replace(one, machine=replace(one.machine, name=name)) for one, name in zip(found, outcomes, strict=True)]
    assert deliver_many(apart[::order], tmp_path / "page.html") == 1
    assert deliver_many(apart[:2][::order], tmp_path / "page.html") == 3
    assert deliver_many(apart[:1], tmp_path / "page.html") == 0


def test_json_on_stdout_is_json_whatever_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    deliver(results(parity("tiny", error=float("nan"))), json=STDOUT)
    (row,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["parity"]
    assert row["free"]["max_abs"] == ["NaN"] * 4


def test_json_to_stdout_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    found = results(parity("tiny", Outcome.FAIL, "why"))
    assert deliver(found, json=STDOUT) == 1
    assert json.loads(capsys.readouterr().out)["parity"][0]["reasons"] == ["why"]
    qualities.deliver(results(quality("tiny")), json=STDOUT)
    assert json.loads(capsys.readouterr().out)["quality"][0]["outcome"] == "pass"
    with kept(STDOUT, quiet=True) as keep:
        keep(found.parity[0])
    assert not STDOUT.exists()


def test_the_table_has_numbers_place_and_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_results(results(parity("tiny.onnx-cpu.fp32", error=2e-6)))
    _, _, row, verdict = capsys.readouterr().out.splitlines()
    assert " ".join(row.split()) == "tiny.onnx-cpu.fp32 ort:cpu pass on hardware 2e-6 2e-6 2e-6 2e-12 100 %"
    assert verdict == "The artifact matches its checkpoint."


def test_quality_is_a_table_of_its_own_that_counts_in_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    read = quality("tiny", Outcome.FAIL, "too far off", kl=0.004)
    found = results(parity("tiny"), read, latency("tiny", 4.0))
    tables.print_results(found)
    lines = capsys.readouterr().out.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("quality on text"))
    row = "tiny ort:cpu fail 1.93 MB 0.004 0.0123 2.346 2.341 98.7 %"
    assert (lines[start - 1], lines[start + 2].split()) == ("", row.split())
    assert lines[start + 3] == "tiny on ort:cpu: too far off"
    assert lines[start + 4] == ""
    assert lines[-1] == (
        "The artifact is not shown to match its checkpoint; quality of 1 outside tolerance: tiny (too far off)."
    )
    assert deliver(found) == 1


def test_reasons_stand_below_the_table_once_each(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [parity(name, Outcome.FAIL, "the same reason") for name in ("one", "two")]
    tables.print_results(results(*rows, parity("three", Outcome.FAIL, "another")))
    printed = capsys.readouterr().out
    assert "one on ort:cpu, two on ort:cpu: the same reason\n" in printed
    assert "three on ort:cpu: another\n" in printed


def test_what_did_not_run_shows_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_results(results(parity("tiny", Outcome.MISSING, "no such device")))
    row = capsys.readouterr().out.splitlines()[2]
    assert row.split() == ["tiny", "nowhere,", "not", "ort:cpu", "missing", "unproven"]


def test_latency_shows_median_and_rate(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_results(results(latency("tiny", 4.0, "the fan is loud")))
    printed = capsys.readouterr().out
    row = printed.splitlines()[2].split()
    assert row[:3] == ["tiny", "ort:cpu", "pass"]
    assert row[-4:] == ["±", "0.010", "4.000", "250"]
    assert "tiny on ort:cpu: the fan is loud\n" in printed


@pytest.mark.parametrize(("columns", "folded"), [(80, False), (100, True), (200, False)])
def test_a_narrow_terminal_hides_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int, folded: bool
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    tables.print_results(results(parity("a-model-with-a-name.onnx-cpu.fp32"), latency("tiny", 4.0)))
    printed = capsys.readouterr().out
    assert "\u2026" not in printed
    assert ("a-model-with-a-name.onnx-cpu.fp32" not in printed) == folded


def test_tables_are_plain_and_whole_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    name = "a-model-with-a-name-that-is-wider-than-most-terminals-are.executorch-xnnpack.fp32"
    tables.print_results(results(parity(name)))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert f"{name}  ort:cpu" in printed


def test_every_file_that_is_asked_for_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = results(parity("tiny", Outcome.FAIL, "why"))
    paths = {name: tmp_path / name for name in ("json", "junit", "markdown")}
    assert deliver(found, **paths) == 1
    assert outcome.read(paths["json"]) == found
    assert ElementTree.parse(paths["junit"]).getroot().get("failures") == "1"  # noqa: S314  written a line above
    assert "| tiny |" in paths["markdown"].read_text(encoding="utf-8")
