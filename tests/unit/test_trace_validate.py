"""A recorded trace instead of the checkpoint: the same rows as with it, on a machine that has neither it nor torch."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import exporter
from exporter.bundled import HELDOUT
from runtimes import manifest
from runtimes.contract import Artifact
from runtimes.errors import Missing, WrongCall
from rwkv_export.main import run
from tests.models import random_checkpoint
from validation import outcome, trace_file, validate
from validation.golden import Replay
from validation.outcome import Outcome
from validation.recording import record_trace
from validation.runner import exit_code

pytestmark = pytest.mark.slow

STEPS = 32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model of bytes."""
    path = tmp_path_factory.mktemp("model") / "small.pth"
    torch.save(random_checkpoint("7", layers=2, width=32, head_size=16, vocab=257, ffn=40, seed=3), path)
    return path


@pytest.fixture(scope="module")
def artifact(checkpoint: Path) -> Path:
    (folder,) = exporter.export(checkpoint, targets=["onnx-cpu"], out=checkpoint.parent)
    return folder


@pytest.fixture(scope="module")
def trace(checkpoint: Path) -> Path:
    path = checkpoint.parent / "small.trace.safetensors"
    record_trace(checkpoint, out=path, tokens=STEPS, every=8)
    return path


@pytest.fixture(scope="module")
def broken(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact with its head's weights a little off."""
    folder = tmp_path_factory.mktemp("broken") / "artifact"
    model = onnx.load(artifact / "decode.onnx")
    for tensor in model.graph.initializer:
        if list(tensor.dims) in ([257, 32], [32, 257]):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    folder.mkdir()
    onnx.save(model, folder / "decode.onnx")
    document = manifest.read(artifact)
    manifest.write(dataclasses.replace(document, files=manifest.list_files(folder)), folder)
    return folder


def test_a_trace_gives_the_numbers_of_its_checkpoint(artifact: Path, trace: Path, checkpoint: Path) -> None:
    (with_it,) = validate([artifact], steps=STEPS, checkpoint=checkpoint).parity
    (without,) = validate([artifact], trace=trace).parity
    assert with_it.outcome is without.outcome is Outcome.PASS
    assert (without.steps, without.bound, without.prefill.keys()) == (STEPS, with_it.bound, with_it.prefill.keys())
    assert without.free
    assert with_it.free
    assert without.local
    assert with_it.local
    kept = without.local.at
    assert kept == (7, 15, 23, 31)
    assert without.local.max_abs == tuple(with_it.local.max_abs[step] for step in kept)
    assert without.local.kl == tuple(with_it.local.kl[step] for step in kept)
    assert [without.free.max_abs[step] for step in kept] == [with_it.free.max_abs[step] for step in kept]
    assert without.free.top1 == with_it.free.top1
    assert all(part <= whole for part, whole in zip(without.free.max_abs, with_it.free.max_abs, strict=True))
    assert max(without.free.state_max_abs.values()) <= max(with_it.free.state_max_abs.values())
    assert with_it.compared == ""
    assert "local at 4 of 32 steps" in without.compared
    assert "all logits at 4 steps" in without.compared
    assert dataclasses.replace(without.identity, observed="") == dataclasses.replace(with_it.identity, observed="")


def test_a_wrong_artifact_fails_against_the_trace_too(broken: Path, trace: Path, checkpoint: Path) -> None:
    with_it = validate([broken], steps=STEPS, checkpoint=checkpoint, quality=True, quality_tokens=32)
    without = validate([broken], trace=trace, quality=True)
    assert with_it.parity[0].outcome is without.parity[0].outcome is Outcome.FAIL
    for label in ("local: max|Δlogit| ", "free: max|Δlogit| "):
        assert any(reason.startswith(label) for reason in without.parity[0].reasons)
    assert without.quality[0].outcome is Outcome.FAIL
    assert f"of heldout.txt, recorded in {trace.name} exceeds" in without.quality[0].reasons[0]
    assert exit_code(without) == 1


def test_a_text_is_read_from_the_trace(artifact: Path, trace: Path, checkpoint: Path, tmp_path: Path) -> None:
    """The checkpoint's perplexity on the very tokens, and the KL that a run with the checkpoint finds there."""
    recorded, _ = trace_file.read(trace)
    (tmp_path / "same.txt").write_bytes(bytes(token - 1 for token in recorded.tokens))
    options = {"quality": True, "quality_tokens": STEPS - 1}
    (expected,) = validate([artifact], steps=4, checkpoint=checkpoint, text=tmp_path / "same.txt", **options).quality
    (found,) = validate([artifact], trace=trace, quality=True).quality
    assert found.reading
    assert expected.reading
    assert (found.outcome, found.reading.tokens, found.reading.bytes) == (Outcome.PASS, STEPS - 1, STEPS - 1)
    assert found.reading.perplexity == pytest.approx(expected.reading.perplexity, rel=1e-6)
    assert found.reading.reference_perplexity == pytest.approx(expected.reading.reference_perplexity, rel=1e-6)
    assert found.reading.kl_mean <= expected.reading.kl_mean < 1e-9
    assert (found.weight_bytes, found.checkpoint_bytes) == (expected.weight_bytes, expected.checkpoint_bytes)


ELSEWHERE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("there is no torch here")

sys.meta_path.insert(0, Absent())
from rwkv_export.main import main
main()
"""


def test_neither_torch_nor_the_checkpoint_is_needed(artifact: Path, trace: Path, tmp_path: Path) -> None:
    nowhere = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}

    def elsewhere(*words: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-c", ELSEWHERE, "validate", str(artifact), "--quiet", *words]
        return subprocess.run(program, env=nowhere, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = elsewhere("--trace", str(trace), "--quality", "--json", "r.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "The artifact matches its checkpoint" in done.stdout
    assert "local at 4 of 32 steps" in done.stdout
    results = outcome.read(tmp_path / "r.json")
    assert [row.outcome for row in (*results.parity, *results.quality)] == [Outcome.PASS, Outcome.PASS]
    without = elsewhere()
    assert without.returncode == 1, "the same without the trace needs what is not there"
    assert "there is no torch here" in without.stdout


def test_states_that_would_not_fit_into_memory_are_kept_now_and_then(
    artifact: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("validation.golden.MOST", 40_000)
    (row,) = validate([artifact], steps=STEPS, checkpoint=checkpoint).parity
    assert row.outcome is Outcome.PASS
    assert row.local
    assert row.free
    assert row.local.at
    assert (len(row.local.at), len(row.free.max_abs)) == (5, STEPS)
    assert row.compared.startswith("compared with a trace with gaps: local at 5 of 32 steps")


def test_a_trace_of_another_checkpoint_is_told_by_both_hashes(artifact: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save(random_checkpoint("7", layers=2, width=32, head_size=16, vocab=257, ffn=40, seed=4), other)
    record_trace(other, out=tmp_path / "other.safetensors", tokens=4)
    results = validate([artifact], trace=tmp_path / "other.safetensors")
    assert results.parity[0].outcome is Outcome.ERROR
    for said in (manifest.sha256(other)[:12], manifest.read(artifact).source.sha256[:12], "other.pth", "small.pth"):
        assert said in results.parity[0].reasons[0]


def test_a_trace_with_another_epsilon_is_told_by_both(artifact: Path, checkpoint: Path, tmp_path: Path) -> None:
    record_trace(checkpoint, out=tmp_path / "e.safetensors", tokens=4, ln_x_eps=1e-3)
    (row,) = validate([artifact], trace=tmp_path / "e.safetensors").parity
    assert row.outcome is Outcome.ERROR
    assert "recorded with ln_x eps 0.001" in row.reasons[0]
    assert "has 0.00064" in row.reasons[0]


def test_a_damaged_trace_ends_the_call(artifact: Path, trace: Path, tmp_path: Path) -> None:
    content = bytearray(trace.read_bytes())
    content[-5] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(content)
    with pytest.raises(WrongCall, match="does not match its SHA-256"):
        validate([artifact], trace=tmp_path / "damaged.safetensors")


def test_what_a_trace_has_of_its_own_cannot_be_chosen(artifact: Path, trace: Path, checkpoint: Path) -> None:
    for own in ({"checkpoint": checkpoint}, {"text": HELDOUT}, {"steps": 8}, {"seed": 1}):
        with pytest.raises(WrongCall, match="has a checkpoint, a text and steps of its own"):
            validate([artifact], trace=trace, **own)


def test_without_a_tokenizer_ids_are_drawn_and_no_text_is_read(artifact: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "odd.pth", tmp_path / "t.safetensors"
    torch.save(random_checkpoint("6", layers=1, width=32, head_size=16, vocab=33, ffn=40, seed=3), path)
    record_trace(path, out=out, tokens=8)
    recorded, about = trace_file.read(out)
    assert (about.text, about.bytes, max(recorded.tokens) < 33) == ("", 0, True)
    document = manifest.read(artifact)
    model = dataclasses.replace(document.model, vocab=33)
    with pytest.raises(Missing, match=r"t\.safetensors was recorded over random tokens"):
        Replay(out).passage(Artifact(artifact, dataclasses.replace(document, model=model, source=about.source)))
    with pytest.raises(WrongCall, match="no known tokenizer"):
        record_trace(path, out=out, tokens=8, text=HELDOUT)


def test_the_command_writes_a_file_and_says_what_is_in_it(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, text = tmp_path / "t.safetensors", tmp_path / "own.txt"
    text.write_text("It is a truth universally acknowledged", encoding="utf-8")
    assert run(["trace", str(checkpoint), "-o", str(out), "--tokens", "12", "--text", str(text), "-q"]) == 0
    said = capsys.readouterr().out
    assert "12 tokens of own.txt through small.pth, 4 of them with their states" in said
    header = json.loads(out.read_bytes()[8 : 8 + int.from_bytes(out.read_bytes()[:8], "little")])
    assert "tokens" in header
    assert run(["trace", str(checkpoint), "-o", str(out), "--tokens", "2000000", "-q"]) == 2


def test_the_size_is_that_of_the_states_and_few_logits(trace: Path) -> None:
    recorded, _ = trace_file.read(trace)
    state = sum(array.nbytes for array in recorded.states[8].values())
    logits = 4 * 257 * 4 + 28 * (65 * 8 + 16)
    assert trace.stat().st_size == pytest.approx(8 * state + logits, rel=0.25)
