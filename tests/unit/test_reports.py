"""Markdown, JUnit and HTML reports: every row and reason appears, nothing missing reads as passed, nothing loads."""

from __future__ import annotations

import base64
import json
import math
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from runtimes.errors import Missing
from runtimes.manifest import Coverage
from runtimes.profile import Profile, Side, Spent
from validation import exit_code, outcome
from validation.outcome import Bound, Identity, Latency, Machine, Outcome, Parity, Reading, Results, Samples
from validation.reports import history, html, junit, markdown
from validation.reports.delegates import taken
from validation.reports.rows import join, verdict
from validation.reports.words import share, sig, size

pytestmark = pytest.mark.slow

MACHINE = Machine("Linux 6.8", "Test CPU 9000", 8, 16_000_000_000, "performance", "3.11.9", {"torch": "2.13.0"})
BOUND = Bound("cpu-fp32", 1e-3, 1e-6, 1.0, 1e-4, "Float32 sums in another order.")
TIMES = "\u00d7"
HOSTILE = '<script>alert("x")</script>|`$b$'
STYLE = Path(html.__file__).with_name("report.css")


def reading(scale: float = 1e-5, steps: int = 16) -> Reading:
    errors = tuple(scale * (1 + step / steps) for step in range(steps))
    return Reading(
        max_abs=errors,
        rel_std=errors,
        sqnr_db=tuple(-20 * math.log10(error) for error in errors),
        kl=tuple(error**2 for error in errors),
        top1=1.0,
        top10=1.0,
        first_divergent=None,
        state_max_abs={"blocks.0.att.wkv": scale},
        state_rel={"blocks.0.att.wkv": scale, "blocks.1.ffn.shift": scale / 3},
    )


def samples(milliseconds: float = 8.0, count: int = 40, tokens: int = 1) -> Samples:
    seconds = tuple(milliseconds / 1000 * (1 + 0.01 * (index % 7)) for index in range(count))
    middle = sorted(seconds)[count // 2] * 1000
    return Samples(seconds, middle, middle * 1.1, middle * 1.2, 0.1, min(seconds) * 1000, tokens)


def identity(artifact: str, place: str = "ort:cpu", observed: str | None = None) -> Identity:
    seen = place if observed is None else observed
    nodes, how = ({"CPUExecutionProvider": 12}, "run") if seen else ({}, "")
    return Identity(artifact, "tiny", "7", "onnx-cpu", "fp32", place, seen, nodes, how)


def passing(artifact: str, **fields: object) -> Parity:
    row = Parity(identity(artifact), Outcome.PASS, (), 16, BOUND, reading(), reading(3e-5), {"1": 0.0, "graph": 2e-6})
    return replace(row, **fields)


def timed(artifact: str, milliseconds: float = 8.0, **fields: object) -> Latency:
    row = Latency(
        identity(artifact), Outcome.PASS, (), 0.2, 0.05, samples(milliseconds), samples(300, 5, 64), 2_000_000
    )
    return replace(row, **fields)


def junit_of(results: Results) -> ElementTree.Element:
    return ElementTree.fromstring(junit.render(results).encode())  # noqa: S314  our own output


@pytest.fixture
def every_outcome() -> Results:
    """One artifact for each outcome, the reason of each naming it."""
    parity = [passing("art-pass")]
    for kind in (Outcome.FAIL, Outcome.SUSPICIOUS):
        parity.append(passing(f"art-{kind}", outcome=kind, reasons=(f"because of {kind}",)))
    moved = identity("art-fallback", "qnn:htp", "qnn:cpu")
    parity.append(passing("", identity=moved, outcome=Outcome.FALLBACK, reasons=("because of fallback",)))
    for kind in (Outcome.COMPILED, Outcome.MISSING, Outcome.ERROR):
        nowhere = identity(f"art-{kind}", "coreml:ane", "")
        parity.append(Parity(nowhere, kind, (f"because of {kind}",), 0))
    latency = [timed("art-pass"), timed("art-fail", 5.0, warnings=("it rises over the run: try --cooldown 30",))]
    return Results(outcome.SCHEMA, MACHINE, tuple(parity), tuple(latency))


class Page(HTMLParser):
    """Collects tags with attributes and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_page_loads_nothing_and_is_small(every_outcome: Results) -> None:
    text = html.render([every_outcome])
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"script", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            link = attributes.get(name) or "#"
            assert link.startswith(("#", "data:")), (tag, name, link)
    for target in re.findall(r"url\(([^)]*)\)", text):
        assert target.startswith("#")
    assert "@import" not in text
    assert len(text.encode()) < 1_000_000


def test_every_row_reason_warning_tolerance_and_version_is_on_the_page(every_outcome: Results) -> None:
    text = Page(html.render([every_outcome])).text
    for row in every_outcome.parity:
        assert row.identity.artifact in text
        for reason in row.reasons:
            assert reason in text
    for expected in ("try --cooldown 30", BOUND.reason, "Test CPU 9000", "2.13.0", "asked for qnn:htp", "qnn:cpu"):
        assert expected in text


def test_verdict_counts_only_passes_and_says_what_the_others_are(every_outcome: Results) -> None:
    words = str(verdict(join([every_outcome])))
    assert words.startswith("1 of 7 artifacts matches the checkpoint; ")
    assert "1 could not run here: art-missing (because of missing)" in words
    assert "1 compiled only, which nothing here can run: art-compiled (because of compiled)" in words
    for clause in ("outside tolerance", "ran elsewhere than asked", "suspiciously exact", "stopped with an error"):
        assert clause in words


def test_timing_alone_is_never_called_a_pass() -> None:
    results = Results(outcome.SCHEMA, MACHINE, (), (timed("fast"),))
    page = html.render([results])
    assert "Nothing was compared with a checkpoint" in page
    for text in (page, markdown.render(results)):
        assert "timed only" in text
        assert "✅" not in text
    assert 'class="badge pass"' not in page


def test_rows_without_parity_are_told_apart_in_the_verdict() -> None:
    gone = Latency(identity("gone", "coreml:ane", ""), Outcome.MISSING, ("needs macOS",))
    results = Results(outcome.SCHEMA, MACHINE, (passing("a"), passing("b")), (timed("b"), timed("c"), gone))
    assert str(verdict(join([results]))) == (
        "All 2 artifacts match the checkpoint; timing of 1 could not run here: gone (needs macOS); "
        "1 only timed, not compared."
    )


def test_all_missing_shows_no_pass_anywhere() -> None:
    gone = Parity(identity("gone", "coreml:ane", ""), Outcome.MISSING, ("needs macOS",), 0)
    results = Results(outcome.SCHEMA, MACHINE, (gone,))
    page, summary = html.render([results]), markdown.render(results)
    assert 'class="badge pass"' not in page
    assert 'class="badge missing"' in page
    assert "✅" not in summary
    assert "not shown to match" in page
    assert "not shown to match" in summary


@pytest.mark.parametrize("place", ["parity", "timing"])
def test_what_was_only_compiled_is_no_pass_in_any_form(place: str) -> None:
    who, why = identity("made", "pte:vulkan", ""), ("this executorch has no VulkanBackend",)
    parity = (Parity(who, Outcome.COMPILED, why, 0),) if place == "parity" else ()
    results = Results(outcome.SCHEMA, MACHINE, parity, (Latency(who, Outcome.COMPILED, why),))
    page, summary = html.render([results]), markdown.render(results)
    assert 'class="badge pass"' not in page
    assert 'class="badge compiled"' in page
    assert "compiled only" in Page(page).text
    assert ("nothing here can run it" in Page(page).text) == (place == "parity")
    assert "✅" not in summary
    assert "compiled only" in summary
    assert why[0] in summary
    root = junit_of(results)
    assert root.get("skipped") == root.get("tests")
    assert exit_code(results) == Missing.exit_code


@pytest.mark.parametrize("evidence", ["emulated", "interpreted"])
def test_times_of_a_stand_in_are_shown_as_nobodys_latency(evidence: str) -> None:
    stand_in = replace(identity("simulated"), evidence=evidence)
    latency = (timed("simulated", 77.7, identity=stand_in), timed("real"))
    results = Results(outcome.SCHEMA, MACHINE, (passing("", identity=stand_in), passing("real")), latency)
    page = Page(html.render([results]))
    assert f"pass{evidence}" in re.sub(r"\s", "", page.text)
    assert f"decode, {evidence}" in page.text
    above = page.text.partition("All numbers")[0]
    theirs, own = (f"{sig(row.decode.median_ms)} ms" for row in latency if row.decode)
    assert own in above
    assert theirs not in above
    drawn = [attributes["aria-label"] or "" for _, attributes in page.tags if attributes.get("role") == "img"]
    assert not [label for label in drawn if "ms" in label and "row 1" in label]
    row = next(line for line in markdown.render(results).splitlines() if line.startswith("| simulated"))
    assert f"| ort:cpu | ✅ pass | {evidence} |" in row
    assert row.count("–") == 2  # noqa: RUF001  tok/s and ms
    assert evidence in "".join(junit_of(results).itertext())


def covered(artifact: str, coverage: Coverage) -> Parity:
    return passing("", identity=replace(identity(artifact), coverage=coverage))


def test_what_delegates_took_is_a_line_an_artifact() -> None:
    why = {"aten.embedding": "rows are looked up", "aten.index_select": "rows are looked up"}
    inside = {"aten.linear": 7, "aten.mul": 2}
    most = Coverage({"XnnpackBackend": 2}, inside, {"aten.embedding": 1}, 999, 1, 750, 250, why)
    none = Coverage({}, {}, {"aten.linear": 3, "aten.add": 4}, 0, 500, 0, 100)
    rows = (covered("a", most), covered("a", most), covered("b", none), passing("c"))
    results = Results(outcome.SCHEMA, MACHINE, rows)
    lines = {line.row.identity.artifact: line for line in taken(join([results]))}
    assert (lines["a"].macs[0], lines["a"].weights[0], lines["a"].operators) == ("99.9 %", "75 %", ("90 %", "9 of 10"))
    assert [words.replace("\u00a0", " ") for words in (lines["a"].calls, lines["a"].outside)] == [
        f"2 {TIMES} XnnpackBackend",
        f"1 {TIMES} aten.embedding",
    ]
    assert (lines["a"].why, lines["b"].why) == ("aten.embedding, aten.index_select: rows are looked up", "")
    assert lines["b"].calls == "none"
    assert lines["b"].outside.replace("\u00a0", " ") == f"4 {TIMES} aten.add, 3 {TIMES} aten.linear"
    assert "c" not in lines
    page, summary = html.render([results]), markdown.render(results)
    assert "What the delegates took" in page
    assert "9 of 10" in Page(page).text
    for expected in ("XnnpackBackend", "aten.embedding", "99.9 %", "rows are looked up"):
        assert expected in page
        assert expected in summary
    assert "What the delegates took" not in html.render([Results(outcome.SCHEMA, MACHINE, (passing("c"),))])


def test_a_profile_is_drawn_and_every_row_of_it_is_on_the_page() -> None:
    spent = [Spent("Fully Connected (NC, F32) GEMM", "XnnpackBackend", Side.DELEGATE, 49, 6.0, 0.6, 0.6)]
    spent += [Spent(f"aten::op{index}", "", Side.RUNTIME, 1, 0.2, 0.02, 0.02) for index in range(15)]
    spent += [Spent("inputs and outputs", "", Side.OVERHEAD, 1, 1.0, 0.1, 0.1)]
    row = timed("a", 4.0, profile=Profile(40, 10, 10.0, tuple(spent)))
    page = Page(html.render([Results(outcome.SCHEMA, MACHINE, (), (row,))]))
    [picture] = [
        label for _, attributes in page.tags if "token's time" in (label := attributes.get("aria-label") or "")
    ]
    assert f"49 {TIMES} Fully Connected (NC, F32) GEMM · 60.0 %" in picture
    assert "5 others · 18.0 %" in picture
    for part in spent:
        assert part.name in page.text
    assert "XnnpackBackend 60.0 %, the runtime's own kernels 30.0 %, overhead 10.0 %" in page.text
    assert "2.5 times an unprofiled one" in page.text
    assert "profiler's own work" in page.text


def test_a_row_names_its_delegates_before_its_operators() -> None:
    nodes = {"aten::mul": 9, "aten::add": 8, "aten::cat": 7, "XnnpackBackend": 1}
    coverage = Coverage({"XnnpackBackend": 1}, {}, {}, 0, 0, 0, 0)
    [row] = join(
        [
            Results(
                outcome.SCHEMA, MACHINE, (passing("", identity=replace(identity("a"), nodes=nodes, coverage=coverage)),)
            )
        ]
    )
    assert [unit.split()[-1] for unit in row.units] == ["XnnpackBackend", "aten::mul", "aten::add", "more"]


def test_junit_counts_agree_with_the_outcomes(every_outcome: Results) -> None:
    root = junit_of(every_outcome)
    parity, latency = root.findall("testsuite")
    totals = {name: parity.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert totals == {"tests": "7", "failures": "3", "errors": "1", "skipped": "2"}
    assert latency.get("tests") == "2"
    assert root.get("tests") == "9"
    for kind in ("missing", "compiled"):
        skipped = root.find(f".//testcase[@name='art-{kind} on coreml:ane']/skipped")
        assert skipped is not None
        assert skipped.get("message") == f"{kind}: because of {kind}"
    clean = [case.get("name") for case in parity if not {child.tag for child in case} - {"system-out"}]
    assert clean == ["art-pass on ort:cpu"]


def test_hostile_names_stay_text() -> None:
    worse = replace(reading(), state_rel={HOSTILE: 1e-4, "nul\x00\ud800": 2e-4})
    row = passing(HOSTILE, free=worse, outcome=Outcome.FAIL, reasons=(f"{HOSTILE}\nsecond line",))
    results = Results(outcome.SCHEMA, MACHINE, (row,), (timed(HOSTILE),))
    page = html.render([results])
    assert "<script" not in page
    assert HOSTILE in Page(page).text
    page.encode("utf-8")
    root = junit_of(results)
    assert {case.get("name") for case in root.iter("testcase")} == {f"{HOSTILE} on ort:cpu"}
    summary = markdown.render(results)
    assert "<" not in summary.replace("<br>", "")
    table = [line for line in summary.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert len(table) == 3


def test_parity_and_speed_of_two_documents_meet_in_one_row() -> None:
    checked = Results(outcome.SCHEMA, MACHINE, (passing("a"), passing("b")))
    measured = Results(outcome.SCHEMA, MACHINE, (), (timed("b"), timed("a"), timed("c")))
    elsewhere = Results(outcome.SCHEMA, replace(MACHINE, cpu="Other CPU"), (), (timed("a"),))
    rows = join([checked, measured, elsewhere])
    described = [(row.identity.artifact, bool(row.parity), bool(row.latency), row.machine.cpu) for row in rows]
    here = "Test CPU 9000"
    assert described == [
        ("a", True, True, here),
        ("b", True, True, here),
        ("c", False, True, here),
        ("a", False, True, "Other CPU"),
    ]
    assert [row.number for row in rows] == [1, 2, 3, 4]


def test_rows_with_equal_names_join_in_order() -> None:
    checked = Results(outcome.SCHEMA, MACHINE, (passing("a", steps=1), passing("a", steps=2)))
    measured = Results(outcome.SCHEMA, MACHINE, (), (timed("a", load_s=1.0), timed("a", load_s=2.0)))
    together = replace(checked, latency=measured.latency)
    for documents in ([checked, measured], [measured, checked], [together]):
        pairs = [(row.parity.steps, row.latency.load_s) for row in join(documents) if row.parity and row.latency]
        assert pairs == [(1, 1.0), (2, 2.0)]


@pytest.mark.filterwarnings("error")
def test_nan_infinity_zero_and_absence_are_shown_not_hidden() -> None:
    nan, infinity = math.nan, math.inf
    broken = replace(
        reading(),
        max_abs=(0.0, nan, infinity, 1e-9),
        kl=(nan,) * 4,
        sqnr_db=(None, nan, 3.0, 4.0),
        state_rel={"x": nan, "y": 0.0, "z": infinity},
    )
    parity = (
        passing("broken", outcome=Outcome.FAIL, reasons=("not finite",), free=broken, prefill={"1": nan}),
        passing("empty", bound=None, local=None, free=replace(reading(), max_abs=(), kl=(), state_rel={})),
    )
    latency = (
        timed("broken", decode=replace(samples(), seconds=(nan, 0.1), median_ms=nan)),
        timed("empty", decode=None),
    )
    results = Results(outcome.SCHEMA, MACHINE, parity, latency)
    text = Page(html.render([results])).text
    assert "worst NaN" in text
    assert "exactly zero at 1 step, not finite at 2 steps" in text
    assert "NaN" in markdown.render(results)
    assert all(math.isfinite(float(case.get("time", "0"))) for case in junit_of(results).iter("testcase"))


def test_no_rows_at_all_still_makes_a_page() -> None:
    results = Results(outcome.SCHEMA, MACHINE)
    assert "Nothing was compared and nothing was timed." in html.render([results])
    assert "Nothing was compared" in markdown.render(results)
    assert junit_of(results).get("tests") == "0"


def test_same_results_give_the_same_bytes_in_another_process(every_outcome: Results, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    outcome.write(every_outcome, path)
    code = (
        "import sys, pathlib; from validation import outcome; from validation.reports import html;"
        "sys.stdout.buffer.write(html.render([outcome.read(pathlib.Path(sys.argv[1]))]).encode())"
    )
    other = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True)
    assert other.stdout == html.render([every_outcome]).encode()


def test_charts_are_named_unique_and_follow_the_theme(every_outcome: Results) -> None:
    text = html.render([every_outcome])
    page = Page(text)
    charts = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(charts) == 6
    assert all(len(attributes["aria-label"] or "") > 30 for attributes in charts)
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    referenced = set(re.findall(r'(?:href="|url\()#([\w.-]+)', text))
    assert referenced <= set(identifiers)
    drawn = " ".join(re.findall(r"<figure>.*?</figure>", text, re.DOTALL))
    assert not re.findall(r"(?:stroke|fill): #", drawn)
    assert "var(--c1)" in drawn


def test_pictures_say_the_median_of_the_tables() -> None:
    seconds = (0.001, 0.002, 0.004, 0.008)
    row = timed("even", decode=replace(samples(), seconds=seconds, median_ms=statistics.median(seconds) * 1000))
    page = Page(html.render([Results(outcome.SCHEMA, MACHINE, (), (row,))]))
    said = [
        attributes["aria-label"] or "" for tag, attributes in page.tags if tag == "svg" and "aria-label" in attributes
    ]
    said = [label for label in said if "of what computed" not in label]
    assert [label for label in said if "row 1 median 3 ms" in label] == said
    assert len(said) == 2


def test_one_row_has_no_speed_against_accuracy_picture() -> None:
    page = html.render([Results(outcome.SCHEMA, MACHINE, (passing("a"),), (timed("a"),))])
    assert 'id="drift"' in page
    assert 'id="tradeoff"' not in page


def test_raw_results_can_be_downloaded_and_read_back(every_outcome: Results, tmp_path: Path) -> None:
    page = Page(html.render([every_outcome]))
    [link] = [attributes for tag, attributes in page.tags if tag == "a"]
    path = tmp_path / str(link["download"])
    path.write_bytes(base64.b64decode(str(link["href"]).partition("base64,")[2]))
    assert outcome.read(path) == every_outcome


def test_large_raw_results_are_left_out_and_the_page_stays_small() -> None:
    long = replace(samples(), seconds=tuple(0.001 + 1e-6 * index for index in range(3000)))
    parity = tuple(passing(f"a{index}", free=reading(1e-5, 2000)) for index in range(12))
    latency = tuple(timed(f"a{index}", decode=long) for index in range(12))
    text = html.render([Results(outcome.SCHEMA, MACHINE, parity, latency)])
    assert "Too large to carry" in text
    assert "base64" not in text
    assert len(text.encode()) < 1_000_000


def dated(milliseconds: float, made: str, **changes: object) -> Results:
    return replace(Results(outcome.SCHEMA, replace(MACHINE, **changes), latency=(timed("a", milliseconds),)), made=made)


def test_earlier_runs_are_drawn_by_date_and_only_those_of_the_same_machine() -> None:
    now = dated(6.0, "2026-11-22T10:00:00Z")
    later, first = dated(4.0, "2026-11-21T10:00:00Z", packages={"torch": "2.12"}), dated(8.0, "2026-10-01T10:00:00Z")
    other = dated(1.0, "2026-11-20T10:00:00Z", cpu="Another CPU")
    (found,) = history.trace(join([now]), [now], [later, other, first])
    assert [run.decode.min_ms for run in found.runs] == [8.0, 4.0, 6.0]
    assert [run.day for run in found.runs] == ["2026-10-01", "2026-11-21", "2026-11-22"]
    assert history.words(found).endswith("+50 % against the run before, +50 % against the fastest before")
    page = html.render([now], history=[later, other, first])
    assert "How did it change?" in page and "2026-10-01" in page and "2026-11-20" not in page
    assert "How did it change?" not in html.render([now], history=[other])


def test_runs_without_a_date_come_first_and_do_not_hide_one_another() -> None:
    now, dated_one = dated(6.0, ""), dated(5.0, "2026-11-21T10:00:00Z")
    (found,) = history.trace(join([now]), [now], [dated_one, dated(9.0, ""), dated(8.0, "")])
    assert [run.decode.min_ms for run in found.runs] == [9.0, 8.0, 5.0, 6.0]
    assert len({run.moment for run in found.runs}) == 4


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_text_and_line_colour_has_enough_contrast_in_both_themes() -> None:
    themes = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", theme))
        ground = luminance(colours["ground"])
        for name in colours.keys() - {"ground", "rule"}:
            ratio = (max(ground, luminance(colours[name])) + 0.05) / (min(ground, luminance(colours[name])) + 0.05)
            assert ratio >= 4.5, (name, colours[name], ratio)


def test_tables_are_labelled_for_screen_readers(every_outcome: Results) -> None:
    page = Page(html.render([every_outcome]))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table") > 0
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.tags if tag == "th")


def test_numbers_read_as_they_should() -> None:
    assert [sig(value) for value in (None, math.nan, 0.0, 1.2e-5, 0.0123, 117.3, 1234.5, -math.inf)] == [
        "–",  # noqa: RUF001
        "NaN",
        "0",
        "1.2e-5",
        "0.0123",
        "117",
        "1,234",
        "-∞",
    ]
    assert share(0.9999) == "99.9 %"
    assert share(1.0) == "100 %"
    assert [size(count) for count in (0, 999, 764_000_000)] == ["–", "999 B", "764 MB"]  # noqa: RUF001


def test_importing_the_reports_does_not_import_matplotlib() -> None:
    code = "import sys, json; from validation.reports import html, markdown, junit; print(json.dumps([*sys.modules]))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert "validation.reports.html" in loaded
    assert "matplotlib" not in loaded
