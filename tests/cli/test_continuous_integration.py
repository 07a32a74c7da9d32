"""What a user's CI runs, the Action's steps and the pytest plug-in, on a right, a wrong and a slowed artifact."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

import exporter
import validation.gate
from exporter.synth import synth
from runtimes import manifest
from validation import outcome
from validation.runner import measure

pytestmark = pytest.mark.slow

pytest_plugins = "pytester"

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
SMALL: dict[str, Any] = {"layers": 1, "width": 32, "head_size": 16, "vocab": 33}
LARGE = SMALL | {"layers": 2, "width": 1024, "head_size": 64}
SLOW = 6
"""Allowed ratio: the slowed artifact reads 100 MB a token and takes 30 times as long at least, equal ones once."""
SLOWED = r"a decoded token takes \S+ ms, \S+ times the \S+ ms.* in baseline.json of 20\S+, where 6.00 times is allowed"
WRONG = r"it does not compute what its checkpoint does: .*, over 64 tokens; export it again"
FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
for word; do case "$last" in --json|--junit|--markdown|--out) echo "made by $1" > "$word";; esac; last=$word; done
case "$1" in "$FAILS") exit 1;; esac
"""


@dataclass(frozen=True)
class Made:
    """Folders of artifacts that bear one name, and results of the right one."""

    right: Path
    wrong: Path
    slow: Path
    baseline: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("ci")
    artifacts = {}
    for name, sizes in (("right", SMALL), ("slow", LARGE)):
        checkpoint = synth("7", **sizes, out=folder / name / "tiny.pth")
        (artifacts[name],) = exporter.export(checkpoint, targets=["onnx-cpu"], out=folder / name / "out")
    wrong = shutil.copytree(artifacts["right"], folder / "wrong" / artifacts["right"].name)
    (data,) = wrong.glob("*.data")
    weights = np.fromfile(data, np.uint8)
    weights[3:4000:64] ^= 0x80  # the sign of every sixteenth
    weights.tofile(data)
    manifest.write(replace(manifest.read(wrong), files=manifest.list_files(wrong)), wrong)
    tries = [measure([artifacts["right"]], prompt=8, tokens=64) for _ in range(3)]
    outcome.write(min(tries, key=_median_ms), folder / "baseline.json")
    return Made(artifacts["right"], wrong, artifacts["slow"], folder / "baseline.json")


def _median_ms(results: outcome.Results) -> float:
    (row,) = results.latency
    assert row.decode
    return row.decode.median_ms


class Runner:
    """A job that uses the Action: steps with `run` as GitHub's runner would run them, steps that use others by name."""

    def __init__(self, folder: Path, path: Path | None = None, **inputs: str) -> None:
        self.folder, self.summary, self.calls = folder, folder / "summary", folder / "calls"
        self.inputs = {name: each["default"] for name, each in ACTION["inputs"].items()} | inputs
        places = [str(place) for place in (path, Path(sys.executable).parent, os.environ["PATH"]) if place]
        self.environment = os.environ | {
            "PATH": ":".join(places),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "CALLS": str(self.calls),
            "FAILS": "nothing",
        }

    def job(self) -> tuple[list[str], str]:
        """The steps that ran, a failed one with an exclamation mark, and what all of them printed."""
        ran, said, failed = [], "", False
        for step in ACTION["runs"]["steps"]:
            if not self._wanted(step.get("if", ""), failed):
                continue
            if "run" not in step:
                ran.append(step["uses"].partition("@")[0])
                continue
            assert step["shell"] == "bash"
            done = self._bash(step)
            said += done.stdout
            failed |= done.returncode != 0
            ran.append(step["name"] + "!" * (done.returncode != 0))
        return ran, said

    def _bash(self, step: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        assert "${{" not in step["run"], "inputs reach scripts through the environment only"
        script = self.folder / "script.sh"
        script.write_text(step["run"], encoding="utf-8")
        own = {name: self._filled(value) for name, value in step.get("env", {}).items()}
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | own,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )

    def _filled(self, text: str) -> str:
        known = {f"inputs.{name}": value for name, value in self.inputs.items()} | {"github.action_path": str(ROOT)}
        return re.sub(r"\$\{\{ (\S+) \}\}", lambda found: known[found[1]], text)

    def _wanted(self, condition: str, failed: bool) -> bool:
        words = [word.strip() for word in condition.split("&&") if word.strip()]
        if failed and "always()" not in words:
            return False
        names = [word.removeprefix("inputs.").removesuffix(" != ''") for word in words if word != "always()"]
        return all(self.inputs[name] for name in names)


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    """Programs that write down how they were called, and the files they are told to."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("python", "rwkv-export"):
        (folder / name).write_text(FAKE, encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def test_every_input_of_the_action_is_used_and_explained() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    for name, each in ACTION["inputs"].items():
        assert f"${{{{ inputs.{name} }}}}" in text
        assert each["description"]


def test_the_first_run_exports_checks_and_makes_the_baseline(tmp_path: Path, fakes: Path) -> None:
    job = Runner(
        tmp_path, fakes, export="my.pth -t onnx-cpu $(touch evaluated)", baseline="base.json", places="ort:cpu mil:cpu"
    )
    ran, said = job.job()
    steps = ["Install rwkv-export", "Export", "Check", "Report"]
    assert ran == ["actions/setup-python", *steps, "actions/upload-artifact"]
    install, export, gate, bench, report = job.calls.read_text(encoding="utf-8").splitlines()
    assert install == f"python -m pip install --disable-pip-version-check -c {ROOT}/constraints.txt {ROOT}"
    assert export == "rwkv-export export my.pth -t onnx-cpu $(touch evaluated) --out rwkv-export/artifacts"
    assert not (tmp_path / "evaluated").exists()
    what = "rwkv-export/artifacts --on ort:cpu --on mil:cpu"
    files = "--json rwkv-export/results.json --junit rwkv-export/gate.xml --markdown rwkv-export/summary.md"
    assert gate == f"rwkv-export gate {what} --tokens 128 {files}"
    assert bench == f"rwkv-export bench {what} --tokens 128 --json rwkv-export/latency.json"
    assert report.startswith("rwkv-export report rwkv-export/latency.json rwkv-export/results.json --out ")
    assert (tmp_path / "base.json").read_text(encoding="utf-8") == "made by bench\n"
    assert "::notice title=rwkv-export::no base.json yet" in said
    assert job.summary.read_text(encoding="utf-8") == "made by gate\n"


def test_a_later_run_is_compared_and_leaves_the_baseline_alone(tmp_path: Path, fakes: Path) -> None:
    for name in ("base.json", "one.onnx", "two.onnx"):
        (tmp_path / name).write_text("old", encoding="utf-8")
    asked = {"artifacts": "*.onnx", "fail-on": "latency:1.5x", "tokens": "64", "python-version": "", "upload": ""}
    job = Runner(tmp_path, fakes, baseline="base.json", **asked)
    assert job.job()[0] == ["Install rwkv-export", "Check", "Report"]
    gate = job.calls.read_text(encoding="utf-8").splitlines()[1]
    assert gate.startswith(
        "rwkv-export gate one.onnx two.onnx --tokens 64 --baseline base.json --fail-on latency:1.5x "
    )
    assert "bench" not in job.calls.read_text(encoding="utf-8")
    assert (tmp_path / "base.json").read_text(encoding="utf-8") == "old"


def test_a_failed_check_makes_no_baseline_and_still_reports(tmp_path: Path, fakes: Path) -> None:
    job = Runner(tmp_path, fakes, artifacts="x", baseline="base.json")
    job.environment["FAILS"] = "gate"
    ran, _ = job.job()
    assert ran[2:] == ["Check!", "Report", "actions/upload-artifact"]
    assert not (tmp_path / "base.json").exists()
    assert (tmp_path / "rwkv-export" / "report.html").exists()
    assert job.summary.read_text(encoding="utf-8") == "made by gate\n"


def test_the_action_fails_for_a_slowed_and_a_wrong_artifact_and_says_so(tmp_path: Path, made: Made) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/bin/true")  # it is installed
    asked = {"artifacts": f"{made.slow} {made.wrong}", "fail-on": f"parity,latency:{SLOW}x", "tokens": "64"}
    job = Runner(tmp_path, tmp_path / "bin", baseline=str(made.baseline), **asked)
    assert job.job()[0][2:4] == ["Check!", "Report"]
    summary = job.summary.read_text(encoding="utf-8")
    for sentence in (SLOWED, WRONG):
        assert re.search(rf"^- tiny\S* on ort:cpu: {sentence}", summary, re.MULTILINE)
    assert b"a decoded token takes" in (tmp_path / "rwkv-export" / "report.html").read_bytes()
    suites = ElementTree.parse(tmp_path / "rwkv-export" / "gate.xml").getroot()  # noqa: S314  written by us
    failed = [(case.get("classname"), case.find("failure") is not None) for case in suites.iter("testcase")]
    checks = ("parity.onnx-cpu", "latency.onnx-cpu")
    assert sorted(failed) == sorted([(checks[0], False), (checks[0], True), (checks[1], False), (checks[1], True)])


def plugin(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Pytest in a process of its own, with this plug-in alone, whether or not its entry point is installed."""
    pytester._monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    loaded = ("-p", "rwkv_export.pytest_plugin", "-p", "no:cacheprovider")
    return pytester.run(sys.executable, "-m", "pytest", *loaded, *arguments)


def test_the_plugin_has_a_test_for_each_artifact_place_and_check(pytester: pytest.Pytester, made: Made) -> None:
    pytester.makepyfile(test_own="def test_own(): pass")
    artifacts = [word for path in (made.wrong, made.slow) for word in ("--rwkv-artifact", str(path))]
    limits = ("--rwkv-baseline", str(made.baseline), "--rwkv-slower", str(SLOW))
    done = plugin(pytester, *artifacts, *limits, "-v", "-m", "rwkv", "-W", "error::pytest.PytestWarning")
    done.assert_outcomes(passed=2, failed=2, deselected=1)
    for path, parity, latency in (
        (made.wrong, "FAILED", "PASSED"),
        (made.slow, "PASSED", "FAILED"),
    ):
        done.stdout.re_match_lines([f".*{path.name}::ort:cpu parity {parity}", f".*ort:cpu latency {latency}"])
    done.stdout.re_match_lines([rf"tiny\S+ on ort:cpu: {WRONG}"])
    done.stdout.re_match_lines([rf"tiny\S+ on ort:cpu: {SLOWED}"])
    assert "Traceback" not in done.stdout.str()
    assert ".py:" not in done.stdout.str()


def test_what_cannot_run_is_skipped_and_what_cannot_be_judged_fails(
    pytester: pytest.Pytester, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = outcome.read(made.baseline).latency[0].identity
    lacking = outcome.Parity(replace(who, observed=""), outcome.Outcome.MISSING, ("there is no such device",), steps=0)
    unjudged = outcome.Latency(who, outcome.Outcome.MISSING, ("timed, but not judged: no baseline",))
    found = replace(outcome.read(made.baseline), parity=(lacking,), latency=(unjudged,))
    monkeypatch.setattr(validation.gate, "gate", lambda folders, **asked: found)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    asked = ("--rwkv-artifact", str(made.right), "--rwkv-baseline", str(made.baseline), "-rs")
    done = pytester.runpytest_inprocess("-p", "rwkv_export.pytest_plugin", "-p", "no:cacheprovider", *asked)
    done.assert_outcomes(skipped=1, failed=1)
    done.stdout.fnmatch_lines(
        ["tiny* on ort:cpu: timed, but not judged: no baseline", "*missing: there is no such device"]
    )


def test_the_plugin_refuses_what_is_no_artifact(pytester: pytest.Pytester) -> None:
    done = plugin(pytester, "--rwkv-artifact", "nowhere")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.re_match_lines(["ERROR: .*nowhere"])


def test_the_plugin_is_quiet_and_light_unless_asked() -> None:
    program = (
        "import sys, rwkv_export.pytest_plugin;"
        "print(sorted({'torch', 'numpy', 'scipy', 'onnx', 'typer', 'validation.runner'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pytest_finds_the_plugin_by_its_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"rwkv-export": "rwkv_export.pytest_plugin"}
