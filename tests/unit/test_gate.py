"""The gate: a slowed and a wrong artifact fail in one sentence that has every number, noise and strangers do not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_exports import exported

from runtimes import manifest
from runtimes.errors import WrongCall
from validation import gate as gates
from validation import outcome, runner
from validation.gate import Limits, gate, parse
from validation.latency import summarise
from validation.outcome import Identity, Latency, Machine, Outcome, Results

pytestmark = pytest.mark.slow

MACHINE = Machine("Linux 6.8", "Test CPU 9000", 8, 16_000_000_000, "performance", "3.11.9", {})
WHO = Identity("art.onnx-cpu.fp32", "tiny", "7", "onnx-cpu", "fp32", "ort:cpu", "ort:cpu", evidence="run")
Gate = Callable[..., Latency]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("7", "onnx-cpu", tmp_path_factory.mktemp("art"))


def timed(milliseconds: float, seed: int = 0, *, prefill: float = 50.0, **fields: object) -> Results:
    """Decode and prefill with 5 % of noise."""
    chance = np.random.default_rng(seed)
    decode = summarise((milliseconds / 1000 * chance.lognormal(0, 0.05, 128)).tolist(), 1)
    prompt = summarise((prefill / 1000 * chance.lognormal(0, 0.01, 5)).tolist(), 64)
    row = Latency(WHO, Outcome.PASS, (), decode=decode, prefill=prompt)
    return Results(outcome.SCHEMA, MACHINE, latency=(replace(row, **fields),), made="2026-11-20T08:00:00Z")


@pytest.fixture
def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """The row of a gate whose measurements give these results in turn; every one of them must be asked for."""

    def run(old: Results, *new: Results, fail_on: str = "latency:1.10x") -> Latency:
        outcome.write(old, tmp_path / "baseline.json")
        left = list(new)
        monkeypatch.setattr(runner, "measure", lambda artifacts, **others: left.pop(0))
        found = gate([Path("art")], baseline=tmp_path / "baseline.json", fail_on=fail_on)
        assert not left
        (row,) = found.latency
        return row

    return run


def test_limits_are_words_with_commas() -> None:
    assert parse("parity") == Limits(True, None)
    assert parse("latency") == Limits(False, gates.SLOWER)
    assert parse("latency:1.25x, parity") == Limits(True, 1.25)
    for odd in ("", "speed", "latency:1.25", "latency:0.9x", "latency:1.1x,latency:1.2x", "parity latency"):
        with pytest.raises(WrongCall, match="cannot fail on"):
            parse(odd)


def test_latency_without_a_baseline_is_a_wrong_call() -> None:
    with pytest.raises(WrongCall, match="no baseline") as caught:
        gate([Path("art")], fail_on="latency:1.10x")
    assert "rwkv-export bench" in str(caught.value.hint)


def test_a_slowed_artifact_fails_in_one_sentence(gated: Gate) -> None:
    row = gated(timed(1.0), timed(1.3, 1), timed(1.28, 2))
    assert row.outcome is Outcome.FAIL
    (sentence,) = row.reasons
    assert sentence.startswith("a decoded token takes 1.28 ms, 1.2")
    for part in (
        "times the 1 ms in baseline.json of 2026-11-20, where 1.10 times is allowed (slower in two measurements",
        "find what changed since, or accept it by making these results the new baseline",
    ):
        assert part in sentence


def test_each_of_decode_and_prompt_counts(gated: Gate) -> None:
    row = gated(timed(1.0), timed(1.0, 1, prefill=70.0), timed(1.0, 2, prefill=70.0))
    (sentence,) = row.reasons
    assert sentence.startswith("a prefill of 64 tokens takes ")


def test_what_is_slow_only_once_passes(gated: Gate) -> None:
    row = gated(timed(1.0), timed(1.5, 1), timed(1.02, 2))
    assert (row.outcome, row.reasons) == (Outcome.PASS, ())
    row = gated(timed(1.0), timed(1.5, 1), timed(1.0, 2, prefill=70.0))
    assert (row.outcome, row.reasons) == (Outcome.PASS, ())


def test_what_is_within_the_limit_is_measured_once(gated: Gate) -> None:
    assert gated(timed(1.0), timed(1.05, 1)).outcome is Outcome.PASS
    assert gated(timed(1.0), timed(1.3, 1), fail_on="latency:1.5x").outcome is Outcome.PASS
    assert gated(timed(1.0), timed(0.5, 1)).outcome is Outcome.PASS


def test_what_cannot_be_judged_is_no_pass(gated: Gate) -> None:
    here = timed(1.0, 1)
    stranger = replace(timed(1.0), machine=replace(MACHINE, cpu="Another CPU"))
    another = timed(1.0, identity=replace(WHO, artifact="other"))
    empty = timed(1.0, decode=None, outcome=Outcome.MISSING, reasons=("no such device",))
    fewer = replace(timed(1.0), machine=replace(MACHINE, cores=4))
    told = {
        "8 cores of Another CPU": stranger,
        "4 cores of Test CPU 9000": fewer,
        "has no timing of art.onnx-cpu.fp32 on ort:cpu": another,
    }
    for words, old in (told | {"no timing of": empty}).items():
        row = gated(old, here)
        assert row.outcome is Outcome.MISSING
        assert row.reasons[0].startswith("timed, but not judged: baseline.json ")
        assert words in row.reasons[0]
    emulated = timed(1.0, 1, identity=replace(WHO, evidence="emulated"))
    assert "an emulator" in gated(emulated, emulated).reasons[0]
    for stand_in in (emulated, timed(1.0, 1, outcome=Outcome.FALLBACK, reasons=("ran elsewhere",))):
        row = gated(stand_in, here)
        assert row.outcome is Outcome.MISSING
        assert "has no timing of" in row.reasons[0]


def test_what_did_not_run_stays_what_it_is(gated: Gate) -> None:
    absent = timed(1.0, decode=None, outcome=Outcome.MISSING, reasons=("no such device",))
    assert gated(timed(1.0), absent).reasons == ("no such device",)
    fallback = timed(1.0, 1, outcome=Outcome.FALLBACK, reasons=("ran elsewhere",))
    assert gated(timed(1.0), fallback).outcome is Outcome.FALLBACK


def test_a_right_artifact_passes_for_real_and_a_slowed_one_does_not(artifact: Path, tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.json"
    outcome.write(runner.measure([artifact], prompt=4, tokens=32), baseline)
    limits = {"baseline": baseline, "fail_on": "parity,latency:20x", "steps": 8, "prompt": 4, "tokens": 32}
    found = gate([artifact], **limits)  # type: ignore[arg-type]
    assert runner.exit_code(found) == 0
    assert len(found.parity) == len(found.latency) == 1
    (row,) = found.latency
    assert row.method and row.method.warm_up_steps >= 16
    assert row.energy and (row.energy.joules or row.energy.reason)
    assert row.traffic and row.bandwidth and row.harness is not None
    outcome.write(found, tmp_path / "found.json")
    assert outcome.read(tmp_path / "found.json") == found
    ago = outcome.read(baseline)
    quick = [replace(row, decode=summarise([s / 1000 for s in row.decode.seconds], 1)) for row in ago.latency]  # type: ignore[union-attr]
    outcome.write(replace(ago, latency=tuple(quick)), baseline)
    assert runner.exit_code(gate([artifact], **limits)) == 1  # type: ignore[arg-type]


def flipped(artifact: Path, folder: Path, *, hashed: bool) -> Path:
    """The artifact with the signs of a few weights flipped; its manifest says so, or not."""
    wrong = shutil.copytree(artifact, folder / artifact.name)
    (data,) = wrong.glob("*.data")
    values = np.fromfile(data, np.uint8)
    values[3:4000:64] ^= 0x80
    values.tofile(data)
    if hashed:
        document = manifest.read(wrong)
        manifest.write(replace(document, files=manifest.list_files(wrong)), wrong)
    return wrong


def test_a_wrong_weight_fails_in_one_sentence(artifact: Path, tmp_path: Path) -> None:
    wrong = flipped(artifact, tmp_path, hashed=True)
    (row,) = gate([wrong], fail_on="parity", steps=8).parity
    assert row.outcome is Outcome.FAIL
    assert row.reasons[0].startswith("it does not compute what its checkpoint does: ")
    assert "over 8 tokens; export it again" in row.reasons[0]
    assert row.reasons[1].startswith("local: ")


def test_a_file_that_changed_by_itself_is_told_by_name(artifact: Path, tmp_path: Path) -> None:
    wrong = flipped(artifact, tmp_path, hashed=False)
    (row,) = gate([wrong], fail_on="parity", steps=8).parity
    assert row.outcome is Outcome.ERROR
    assert ".data" in row.reasons[0]
