"""What rows are evidence of: never more than they recorded, whatever was edited, joined or left out."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter import registry
from runtimes.manifest import Target
from validation import outcome
from validation.comparison import artifact_changes, compare, regressed
from validation.evidence import Evidence, believed, doubts, evidence
from validation.outcome import Bound, Identity, Latency, Machine, Outcome, Parity, Quality, Reading, Results, Samples
from validation.reports import markdown
from validation.reports.rows import join, place, verdict
from validation.tolerances import bound, held_to

ROOT = Path(__file__).parents[2]
MACHINE = Machine("Linux 6.8", "Test CPU 9000", 8, 16_000_000_000, "", "3.11.9", {})
BOUND = Bound("half", 1e-2, 1e-3, 1.0, 1e-2, "rounded", rounds=True)
SEEN = Reading((1e-3,) * 8, (1e-3,) * 8, (60.0,) * 8, (1e-6,) * 8, 1.0, 1.0, None, {"wkv": 1e-3}, {"wkv": 1e-3})
WHO = Identity("art", "tiny", "7", "coreml-ane", "fp16", "coreml:ane", "coreml:ane", {"ane": 9}, "run", digest="a" * 64)
PASSED = Parity(WHO, Outcome.PASS, (), 8, BOUND, SEEN, SEEN, {"1": 0.0, "uneven": 0.0})


def results(*rows: Parity | Quality | Latency, machine: Machine = MACHINE) -> Results:
    return outcome.collected(rows, machine)


def timed(identity: Identity = WHO) -> Latency:
    samples = Samples((0.008,) * 20, 8.0, 8.0, 8.0, 0.0, 8.0, 1)
    return Latency(identity, Outcome.PASS, (), 0.1, 0.01, samples)


@pytest.mark.parametrize("result", list(Outcome))
@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("run", Evidence.HARDWARE),
        ("emulated", Evidence.EMULATED),
        ("interpreted", Evidence.INTERPRETED),
        ("", Evidence.UNPROVEN),
        ("measured on a real device", Evidence.UNPROVEN),
    ],
)
def test_only_a_pass_is_evidence_and_only_of_the_kind_that_was_recorded(
    result: Outcome, how: str, kind: Evidence
) -> None:
    row = replace(PASSED, outcome=result, identity=replace(WHO, evidence=how))
    otherwise = Evidence.COMPILED if result is Outcome.COMPILED else Evidence.UNPROVEN
    assert evidence(row) is (kind if result is Outcome.PASS else otherwise)
    assert evidence(None) is Evidence.UNPROVEN


EDITS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "another device": ({"identity": replace(WHO, observed="coreml:cpu")}, "asked for coreml:ane and ran on coreml:cpu"),
    "no device": ({"identity": replace(WHO, observed="")}, "ran on nothing"),
    "no reading": ({"local": None}, "no readings"),
    "no bound": ({"bound": None}, "no bound"),
    "no steps": ({"steps": 0}, "8 of 0 steps"),
    "three steps": ({"steps": 3, "free": replace(SEEN, max_abs=(1e-3,) * 3)}, "4 are the fewest"),
    "fewer than said": ({"steps": 64}, "8 of 64 steps"),
    "logits too far off": ({"free": replace(SEEN, max_abs=(*(1e-3,) * 7, 0.5))}, "free errors are not within half"),
    "NaN logits": ({"local": replace(SEEN, max_abs=(float("nan"),) * 8)}, "local errors are not within half"),
    "NaN divergence": ({"free": replace(SEEN, kl=(float("nan"),) * 8)}, "free errors are not within half"),
    "a state too far off": ({"free": replace(SEEN, state_rel={"wkv": 0.5})}, "free errors are not within half"),
    "no error at all": (dict.fromkeys(("local", "free"), replace(SEEN, max_abs=(0.0,) * 8)), "exactly"),
    "no prompt": ({"prefill": {}}, "no prompt was compared"),
    "NaN prompt": ({"prefill": {"1": float("nan")}}, "no prompt was compared"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_pass_that_its_own_record_contradicts_is_none(edit: str, tmp_path: Path) -> None:
    changes, sentence = EDITS[edit]
    outcome.write(results(replace(PASSED, **changes)), tmp_path / "r.json")
    read = outcome.read(tmp_path / "r.json")
    (row,) = join([read])
    assert (row.outcome, row.evidence) == (Outcome.SUSPICIOUS, Evidence.UNPROVEN)
    assert sentence in " ".join(row.reasons)
    assert verdict([row]).headline == "The artifact is not shown to match its checkpoint"
    assert "✅" not in markdown.render(read)


def test_what_holds_is_left_as_it_is() -> None:
    failed = replace(PASSED, outcome=Outcome.FAIL, local=None)
    assert believed(PASSED) is PASSED
    assert believed(failed) is failed
    assert not list(doubts(timed()))


def test_texts_and_times_are_doubted_too() -> None:
    text = bound("int8")
    reading = outcome.TextReading(512, 2048, 1.0, 2.0, 9.0, 2.0, 0.5)
    assert "mean KL of 1 nats" in " ".join(doubts(Quality(WHO, Outcome.PASS, (), "novel.txt", text, reading)))
    assert list(doubts(Quality(WHO, Outcome.PASS, (), "novel.txt", text))) == ["no text was read"]
    assert believed(timed(replace(WHO, observed="coreml:cpu"))).outcome is Outcome.SUSPICIOUS


def test_a_text_that_failed_takes_the_evidence_with_it() -> None:
    text = Quality(WHO, Outcome.FAIL, ("mean KL too far",), "novel.txt")
    (row,) = join([results(PASSED, text)])
    assert row.evidence is Evidence.UNPROVEN


@pytest.mark.parametrize(
    ("observed", "nodes", "words"),
    [
        ("coreml:ane", {"ane": 200, "cpu": 149}, "coreml:ane, 57.3 % of it"),
        ("ssh://board/rknn:npu", {"NPU": 9, "CPU Exp": 1}, "ssh://board/rknn:npu, 90 % of it"),
        ("coreml:ane", {"ane": 349}, "coreml:ane"),
        ("openvino:cpu", {"CPU f32": 193, "CPU u8": 56}, "openvino:cpu"),
        ("ort:cpu", {"CPUExecutionProvider": 333}, "ort:cpu"),
        ("", {}, "nowhere"),
    ],
)
def test_a_device_that_took_a_part_is_not_said_to_have_taken_all(
    observed: str, nodes: Mapping[str, int], words: str
) -> None:
    assert place(replace(WHO, observed=observed, nodes=nodes)) == words


def test_the_headline_says_what_stood_in_for_devices() -> None:
    emulated, interpreted = (
        replace(PASSED, identity=replace(WHO, artifact=how, evidence=how)) for how in ("emulated", "interpreted")
    )
    said = verdict(join([results(PASSED, emulated, interpreted)])).headline
    assert said == "All 3 artifacts match the checkpoint: 1 on hardware, 1 emulated, 1 interpreted"
    assert verdict(join([results(emulated)])).headline == "The artifact matches its checkpoint, emulated"


def test_a_text_that_was_read_is_no_comparison_of_states() -> None:
    reading = outcome.TextReading(512, 2048, 1e-4, 1e-3, 2.0, 2.0, 1.0)
    rows = join([results(Quality(WHO, Outcome.PASS, (), "novel.txt", bound("int8"), reading))])
    assert rows[0].evidence is Evidence.UNPROVEN
    assert rows[0].badges == (("pass", "quality: pass"),)
    assert (
        str(verdict(rows)) == "Nothing was compared with a checkpoint step by step; 1 artifact read a text beside it."
    )


def test_times_of_another_artifact_of_the_name_are_not_put_beside_a_pass() -> None:
    rows = join([results(PASSED), results(timed(replace(WHO, digest="b" * 64)))])
    assert [(row.evidence, row.decode is None) for row in rows] == [
        (Evidence.HARDWARE, True),
        (Evidence.UNPROVEN, False),
    ]
    assert len(join([results(PASSED), results(timed())])) == 1


def test_times_of_another_machine_are_not_put_beside_a_pass() -> None:
    other = replace(MACHINE, name="board")
    assert len(join([results(PASSED), results(timed(), machine=other)])) == 2


def test_an_emulator_in_place_of_the_device_is_a_regression_and_the_way_back_is_none() -> None:
    device, emulator = results(PASSED), results(replace(PASSED, identity=replace(WHO, evidence="emulated")))
    (lost,) = (change for change in compare(device, emulator) if change.metric == "evidence")
    assert lost.sentence == "art on coreml:ane: its pass was on hardware and is emulated"
    assert regressed((lost,))
    assert not regressed(compare(emulator, device))
    assert not [change for change in compare(device, device) if change.metric == "evidence"]


def test_compare_tells_when_a_name_stands_for_other_files() -> None:
    other = results(replace(PASSED, identity=replace(WHO, digest="b" * 64)))
    unknown = results(replace(PASSED, identity=replace(WHO, digest="")))
    assert artifact_changes(results(PASSED), other) == ("art",)
    assert artifact_changes(results(PASSED), results(PASSED)) == ()
    assert artifact_changes(unknown, other) == ()


def test_an_artifact_does_not_choose_what_it_is_held_to() -> None:
    mine = Target("onnx-cpu", "ort", "cpu", "fp32", tolerance="int4")
    assert held_to(mine) == bound("fp32")
    assert held_to(replace(mine, name="of-a-later-version")) == bound("int4")
    assert held_to(replace(mine, precision="of-a-later-version")) == bound("int4")


def recorded() -> Path:
    """The file that the README's first table is made of."""
    found = re.search(r"<!-- matrix: (\S+) -->", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert found
    return ROOT / found[1]


def test_every_precision_of_a_target_that_the_readme_names_has_a_row() -> None:
    rows = [(row.identity.target, row.identity.precision) for row in outcome.read(recorded()).parity]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    known = {name: target for name, target in registry.targets().items() if f"`{name}`" in readme}
    assert sorted(rows) == sorted((name, each) for name, target in known.items() for each in target.precisions)


def test_rows_of_the_readme_ran_where_their_targets_are_for_within_the_bounds_of_today() -> None:
    for row in outcome.read(recorded()).parity:
        target = registry.targets()[row.identity.target]
        assert row.identity.requested == f"{target.runtime}:{target.device}"
        assert row.bound in (None, bound(target.precisions[row.identity.precision]))
        assert believed(row) is row


def test_the_table_of_the_readme_does_not_repeat_what_a_file_only_claims(tmp_path: Path) -> None:
    text = recorded().read_text(encoding="utf-8").replace('"observed": "qnn:htp-emulator"', '"observed": "qnn:htp"')
    (tmp_path / "claimed.json").write_text(
        text.replace('"evidence": "emulated"', '"evidence": "run"'), encoding="utf-8"
    )
    command = [sys.executable, str(ROOT / "benchmarks" / "matrix.py"), str(tmp_path / "claimed.json")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^\| `qnn` \| \w+ \| ([^|]+) \|", printed, re.MULTILINE) == ["unproven: suspicious"] * 3
