"""How decode was measured and where rows ran, as the page tells it: shares by hand, nothing invented, old files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from runtimes.manifest import Coverage
from runtimes.schema import to_plain
from validation import outcome
from validation.latency import summarise
from validation.outcome import Energy, Identity, Latency, Machine, Method, Outcome, Results, Traffic
from validation.reports import html, measured, placement
from validation.reports.rows import Row, join

MACHINE = Machine("Linux 6.8", "Test CPU 9000", 8, 16_000_000_000, "performance", "3.11.9", {})
WHO = Identity("art", "tiny", "7", "onnx-cpu", "fp32", "ort:cpu", "ort:cpu", {"CPUExecutionProvider": 300}, "run")
METHOD = Method(24, True, wall_s=0.45, clock_step_s=2e-8, clock_read_s=5e-8, stolen=0.004)


def results(**fields: object) -> Results:
    row = Latency(
        WHO,
        Outcome.PASS,
        (),
        decode=summarise([0.01] * 40, 1),
        rss_bytes=743_000_000,
        method=METHOD,
        energy=Energy(0.0123, "RAPL: package-0"),
        traffic=Traffic(50_000_000, 10.0, 2),
    )
    return Results(outcome.SCHEMA, MACHINE, latency=(replace(row, **fields),))


def one(**fields: object) -> Row:
    (row,) = join([results(**fields)])
    return row


def text(document: Results) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html.render([document])).replace("\u00a0", " ").split())


def test_speed_stands_above_percentiles_bandwidth_and_energy() -> None:
    page = text(results())
    assert "100 tok/s 10 ms p90 10, p99 10 50 % of memory speed 12.3 mJ a token" in page
    assert "process 743 MB" in page


def test_the_method_is_a_line_a_row() -> None:
    [(_, cells)] = measured.table([one()])
    told = dict(zip(measured.HEADER, cells, strict=True))
    assert told == {
        "warm-up": "24 steps",
        "between calls": "11.1 %",  # 0.05 s of 0.45 s
        "clock": "50 ns",
        "stolen": "0.4 %",
        "reads a token": "50 MB",
        "memory gives": "10 GB/s, 2 threads",
        "taken of that": "50.0 %",
        "energy a token": "12.3 mJ",
    }
    assert "Energy: RAPL: package-0." in text(results())


def test_what_is_not_known_is_a_dash_and_says_why() -> None:
    row = one(method=replace(METHOD, settled=False, stolen=None), energy=Energy(reason="no meter"), traffic=None)
    [(_, cells)] = measured.table([row])
    assert cells[0] == "24 steps, not settled"
    assert [cells[place] for place in (3, 4, 5, 6, 7)] == ["–"] * 5  # noqa: RUF001  an en dash
    assert measured.reasons([row]) == ["Energy: no meter."]
    assert measured.costs(row)[2:] == ()


def test_weights_in_caches_are_no_share_of_memory() -> None:
    row = one(traffic=Traffic(150_000_000, 10.0, 2))
    assert "from caches" in measured.costs(row)
    assert "1.5 times, from caches" in measured.table([row])[0][1]


def test_results_of_earlier_versions_are_read_and_shown(tmp_path: Path) -> None:
    document = to_plain(results())
    for row in document["latency"]:
        for new in ("method", "energy", "traffic"):
            del row[new]
    (tmp_path / "old.json").write_text(json.dumps(document), encoding="utf-8")
    old = outcome.read(tmp_path / "old.json")
    assert "How decode was measured" not in html.render([old])
    assert "100 tok/s 10 ms p90 10, p99 10" in text(old)


@pytest.mark.parametrize(
    ("identity", "wanted"),
    [
        (replace(WHO, nodes={"CPU": 1, "ours": 3}), [("ours", 0.75), ("CPU", 0.25)]),
        (
            replace(WHO, coverage=Coverage({"Xnnpack": 2}, {}, {}, 900, 100, 0, 0)),
            [("Xnnpack", 0.9), ("the runtime", 0.1)],
        ),
        (replace(WHO, target="executorch-xnnpack", nodes={"Xnnpack": 1, "aten::embedding": 1}), []),
        (replace(WHO, observed=""), []),
    ],
    ids=["nodes", "macs", "delegates unknown", "nowhere"],
)
def test_a_bar_has_the_shares_of_what_computed(identity: Identity, wanted: list[tuple[str, float]]) -> None:
    assert placement.shares(one(identity=identity)) == wanted


def test_asked_and_observed_place_stand_beside_the_bar() -> None:
    moved = results(identity=replace(WHO, requested="ort:cuda"))
    page = text(moved)
    assert "Where did it run?" in page
    assert "ort:cpu, asked for ort:cuda: CPUExecutionProvider 100 % of the nodes" in page
    assert "ort:cpu, as asked: CPUExecutionProvider 100 % of the nodes" in text(results())
