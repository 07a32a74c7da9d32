"""The soak benchmark: a short run is right and paced, and its verdict knows growth, slowness and wrong numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Exports

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STEPS, SECONDS, WINDOWS = 240, 4.0, 8


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import soak

    return soak


def windows(**slopes: float) -> list[dict[str, Any]]:
    """Twenty of 100 MB and 1 ms, each key growing by so much a window."""
    return [
        {"rss_bytes": 1e8 + slopes.get("rss_bytes", 0) * i, "median_ms": 1 + slopes.get("ms", 0) * i} for i in range(20)
    ]


def test_a_short_run_is_paced_and_agrees_with_float64(exports: Exports, tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    sizes = [f"--hours={SECONDS / 3600}", f"--steps={STEPS}", f"--windows={WINDOWS}", "--place=ort:cpu"]
    command = [sys.executable, str(BENCHMARKS / "soak.py"), f"--checkpoint={exports.checkpoint('6')}", f"--out={out}"]
    ran = subprocess.run([*command, *sizes], capture_output=True, text=True, check=False, env=dict(os.environ))
    (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [window["steps"] for window in row["windows"]] == [STEPS // WINDOWS * (i + 1) for i in range(WINDOWS)]
    assert row["observed"] == "ort:cpu"
    assert row["windows"][-1]["seconds"] >= SECONDS * (STEPS - 1) / STEPS  # as spread out as was asked
    assert 0 < row["state_rel"] < 5e-5
    assert 0 < row["max_abs"] < 5e-5
    assert all("times as long" in failure for failure in row["failures"])  # a busy machine may say so of 4 seconds
    assert ran.returncode == bool(row["failures"]), ran.stderr


def test_flat_and_right_windows_pass(soak: Any) -> None:
    assert soak.judge(windows(), 1e-6, 1e-6).failures == ()


@pytest.mark.parametrize(
    ("slopes", "errors", "said"),
    [
        ({"rss_bytes": 4e5}, (0.0, 0.0), "memory grew by 4.0 MB"),
        ({"ms": 0.02}, (0.0, 0.0), "a token takes 1.18 times as long in the end"),
        ({}, (1e-3, 0.0), "the state is off by 1.0e-03, more than 5e-05"),
        ({}, (0.0, float("nan")), "a logit is off by nan, more than 5e-05"),
    ],
)
def test_what_did_not_stay_as_it_was_is_said(
    soak: Any, slopes: dict[str, float], errors: tuple[float, float], said: str
) -> None:
    assert soak.judge(windows(**slopes), *errors).failures == (said,)


def test_a_runtime_that_dies_is_a_failure_with_its_last_words(soak: Any, exports: Exports, tmp_path: Path) -> None:
    given = type("Given", (), {"hours": 0.0, "steps": 8, "windows": 2, "seed": 0, "checkpoint": None})
    row = soak.run("ort:nowhere", exports("6", "onnx-cpu"), tmp_path / "scratch", given)
    assert "windows" not in row
    assert row["failures"][0].startswith("it ended with status 1: ")
    assert "nowhere" in row["failures"][0]
