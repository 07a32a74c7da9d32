"""The harness benchmark: a run on a tiny model generates the same tokens twice and sums up what it wrote."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_run_records_every_round_and_its_ratios(tmp_path: Path) -> None:
    out = tmp_path / "new" / "harness.json"
    command = [sys.executable, str(BENCHMARKS / "harness.py"), "--out", str(out), "--size", "tiny"]
    options = ["--precision", "fp32", "--rounds", "6", "--tokens", "20"]
    environment = os.environ | {"RWKV_EXPORT_THREADS": "1"}
    ran = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert list(out.parent.iterdir()) == [out]
    document = json.loads(out.read_text(encoding="utf-8"))
    assert (len(document["rounds"]), document["threads"], document["choices"]["size"]) == (6, 1, "tiny")
    for name in ("call", "token", "cpu"):
        shares = [each["bench"][f"{name}_ms"] / each["bare"][f"{name}_ms"] - 1 for each in document["rounds"]]
        assert document["summary"][name]["median"] == pytest.approx(statistics.median(shares))
        assert f"{document['summary'][name]['median']:+.2%}" in ran.stdout
    for each in document["rounds"]:
        for side in each.values():
            assert 0 < side["call_ms"] < side["token_ms"] * 2
    assert (
        ran.stdout.splitlines()[-1] == ("below" if document["summary"]["holds"] else "not below") + " the limit of 2%"
    )


def test_loops_that_part_are_refused() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    import harness

    from runtimes.errors import CheckFailed

    sys.path.remove(str(BENCHMARKS))
    harness.follow([3, 4], [3, 4])
    with pytest.raises(CheckFailed, match="generated \\[3\\], bench's \\[4\\]"):
        harness.follow([3], [4])
