"""The float16 audit: what overflows, vanishes or never forgets is named, and numbers are those of the step itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.contract import Spelling
from exporter.model import open_model, reference_session
from runtimes.errors import WrongCall
from rwkv_export.main import run
from tests.models import random_checkpoint
from validation import fp16_audit
from validation.fp16_risks import Audit, Range
from validation.quality import Text

WORDS = Text("words", "It is a truth universally acknowledged")
TOKENS = 12
Weights = dict[str, torch.Tensor]
Change = Callable[[Weights], None]


def saved(folder: Path, version: str = "7", change: Change = lambda weights: None, vocab: int = 257) -> Path:
    weights = random_checkpoint(version, layers=2, width=32, head_size=16, vocab=vocab, ffn=40, seed=3)
    change(weights)
    torch.save(weights, folder / "model.pth")
    return folder / "model.pth"


def audited(path: Path) -> Audit:
    return fp16_audit.audit(open_model(path), WORDS, tokens=TOKENS)


def at(audit: Audit, module: str, what: str) -> Range:
    (found,) = [one for one in audit.ranges if (one.module, one.what) == (module, what)]
    return found


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_a_model_at_the_scale_of_training_overflows_nowhere(version: str, tmp_path: Path) -> None:
    found = audited(saved(tmp_path, version))
    assert {risk.kind for risk in found.risks} <= {"squares", "decay"}
    assert sum(one.overflows for one in found.ranges) == 0
    assert found.tokens == TOKENS


def test_a_layer_whose_keys_are_scaled_up_is_the_one_that_overflows(tmp_path: Path) -> None:
    def scale(weights: Weights) -> None:
        weights["blocks.1.ffn.key.weight"] *= 2.0**14
        weights["blocks.1.ffn.value.weight"] *= 2.0**-28

    plain, found = audited(saved(tmp_path)), audited(saved(tmp_path, change=scale))
    (risk,) = [risk for risk in found.risks if risk.kind == "overflow"]
    assert risk.module == "blocks.1.ffn"
    assert "mul" in risk.sentence
    assert "infinite in float16" in risk.sentence
    over = [one for one in found.ranges if one.overflows]
    assert [one.module for one in over] == ["blocks.1.ffn"]
    before = at(plain, "blocks.1.ffn", over[0].what)
    assert over[0].largest == pytest.approx(before.largest * 2.0**28, rel=1e-5)
    assert at(found, "head", "mm 1").largest == pytest.approx(at(plain, "head", "mm 1").largest, rel=1e-4)


def test_a_layer_whose_values_are_tiny_vanishes(tmp_path: Path) -> None:
    def shrink(weights: Weights) -> None:
        weights["blocks.0.ffn.value.weight"] *= 1e-9

    (risk,) = [risk for risk in audited(saved(tmp_path, change=shrink)).risks if risk.kind == "vanishing"]
    assert risk.module == "blocks.0.ffn.value"
    assert risk.sentence == "blocks.0.ffn.value: 100% of mm 1 round to zero in float16"


LOGIT = -9.5
SLOW = math.exp(-math.exp(LOGIT))
SLOW_7 = math.exp(-math.exp(-0.5) / (1 + math.exp(-LOGIT)))


@pytest.mark.parametrize(
    ("version", "name", "factors", "slow"),
    [
        ("4", "time_decay", (), SLOW),
        ("5.2", "time_decay", (), SLOW),
        ("6", "time_decay", ("time_decay_w2",), SLOW),
        ("7", "w0", ("w2",), SLOW_7),
    ],
)
def test_decays_that_round_to_one_are_counted_in_their_layer(
    version: str, name: str, factors: tuple[str, ...], slow: float, tmp_path: Path
) -> None:
    def change(weights: Weights) -> None:
        weights[f"blocks.1.att.{name}"].fill_(LOGIT)
        for factor in factors:
            weights[f"blocks.1.att.{factor}"].zero_()

    found = audited(saved(tmp_path, version, change))
    first, second = found.decays
    each = (TOKENS - 1) if factors else 1
    assert (second.module, second.values, second.ones) == ("blocks.1.att", 32 * each, 32 * each)
    assert second.slowest == pytest.approx(slow, abs=1e-7)
    assert second.half_life == pytest.approx(math.log(2) / -math.log(slow), rel=2e-3)
    assert first.ones < first.values
    assert [risk.module for risk in found.risks if risk.kind == "decay"][-1] == "blocks.1.att"


def test_ranges_are_those_of_the_reference_session(tmp_path: Path) -> None:
    path = saved(tmp_path)
    found, session = audited(path), reference_session(path)
    state, logits, wkv = session.initial_state(), [], []
    for token in [byte + 1 for byte in WORDS.content.encode()[:TOKENS]]:
        step = session.step(token, state)
        state = step.state
        logits.append(np.abs(step.logits))
        wkv.append(np.abs(session.read_state(state)["blocks.1.att.wkv"]))
    head, memory = at(found, "head", "mm 1"), at(found, "blocks.1.att", "state wkv")
    assert head.largest == pytest.approx(np.max(logits[1:]), rel=1e-6)
    assert head.smallest == pytest.approx(np.min(logits[1:]), rel=1e-3)
    assert head.values == 257 * (TOKENS - 1)
    assert memory.largest == pytest.approx(np.max(wkv[1:]), rel=1e-6)


def test_squares_are_what_a_norm_that_is_written_out_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    fused = audited(path)
    monkeypatch.setattr(fp16_audit, "Spelling", lambda: Spelling(norm="linear", head_norm="linear"))
    written = audited(path)
    for module in ("blocks.0.att.ln_x", "blocks.1.ln1", "ln_out"):
        assert at(fused, module, "squares").largest == pytest.approx(at(written, module, "mul 1").largest, rel=1e-4)


def test_what_cannot_be_audited_is_refused(tmp_path: Path) -> None:
    model = open_model(saved(tmp_path))
    with pytest.raises(WrongCall, match="cannot audit over 1 tokens"):
        fp16_audit.audit(model, WORDS, tokens=1)
    with pytest.raises(WrongCall, match="few has 1 tokens"):
        fp16_audit.audit(model, Text("few", "a"), tokens=9)
    with pytest.raises(WrongCall, match="no known tokenizer"):
        fp16_audit.audit(open_model(saved(tmp_path, vocab=33)), WORDS, tokens=9)


def test_inspect_tells_it_in_sentences_and_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def slow(weights: Weights) -> None:
        weights["blocks.1.att.w0"].fill_(LOGIT)
        weights["blocks.1.att.w2"].zero_()

    (tmp_path / "words.txt").write_text(WORDS.content, encoding="utf-8")
    words = ["inspect", "-q", str(saved(tmp_path, change=slow)), "--text", str(tmp_path / "words.txt")]
    assert run([*words, "--tokens", str(TOKENS)]) == 0
    shown = capsys.readouterr().out
    assert "blocks.1.att: 352 of 352 decays round to 1.0 in float16, and nothing is forgotten there" in shown
    assert "12 tokens of words.txt, all of it computed in float32" in shown
    assert run([*words, "--tokens", str(TOKENS), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["decays"][1]["ones"] == 352
    assert {"module", "what", "largest", "overflows"} <= document["ranges"][0].keys()


def test_an_artifact_has_no_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    assert run(["inspect", "-q", str(tmp_path), "--fp16"]) == 2
    assert "name the checkpoint" in capsys.readouterr().err
