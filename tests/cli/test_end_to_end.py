"""The bundled model from export to report, through the commands a new user types first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from runtimes import manifest
from rwkv_export import demo as demonstration
from rwkv_export.main import run
from validation import outcome
from validation.outcome import Outcome

from .conftest import Cli

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    assert run(["export", "-q", "-t", "onnx-cpu", "-o", str(out)]) == 0
    (folder,) = out.iterdir()
    return folder


def test_export_prints_the_folder_and_nothing_else(cli: Cli, tmp_path: Path) -> None:
    said = cli("export", "-q", "-t", "torch", "-o", tmp_path)
    (folder,) = tmp_path.iterdir()
    assert (said.code, said.out, said.err) == (0, f"{folder}\n", "")


def test_inspect_shows_the_manifest(cli: Cli, artifact: Path) -> None:
    facts = json.loads(cli("inspect", artifact, "--json").out)
    assert facts["manifest"]["target"]["name"] == "onnx-cpu"
    assert facts["bytes"] == sum(path.stat().st_size for path in artifact.iterdir() if path.name != manifest.FILE_NAME)
    shown = cli("inspect", artifact).out
    assert "made for ort:cpu" in shown
    assert "decode.onnx" in shown


def test_inspect_shows_a_checkpoint(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "random.pth"
    assert cli("synth", "--version", "6", "--layers", "3", "--width", "64", "--vocab", "65536", "-o", path).code == 0
    facts = json.loads(cli("inspect", path, "--json", "-q").out)
    model = facts["model"]
    assert (model["version"], model["layers"], model["width"], facts["tokenizer"]) == ("6", 3, 64, "world")
    assert facts["state_bytes"] == 3 * (64 + 64 + 64 * 64) * 4  # two token shifts and one head of 64 x 64, float32
    assert "RWKV-6, 3 layers, width 64, 1 heads of 64" in cli("inspect", path).out


def test_synth_and_fetch_tell_in_json_what_they_wrote(cli: Cli, tmp_path: Path) -> None:
    (facts,) = json.loads(cli("synth", "-o", tmp_path / "x.pth", "--json").out)
    assert (facts["path"], facts["model"]["version"]) == (str(tmp_path / "x.pth"), "7")


def test_validate_passes_and_writes_what_is_asked_for(cli: Cli, artifact: Path, tmp_path: Path) -> None:
    said = cli("validate", artifact, "--steps", "8", "--json", tmp_path / "r.json", "--junit", tmp_path / "r.xml")
    assert said.code == 0, said.out
    assert "The artifact matches its checkpoint." in said.out
    (row,) = outcome.read(tmp_path / "r.json").parity
    assert (row.outcome, row.identity.observed, row.steps) == (Outcome.PASS, "ort:cpu", 8)
    assert 'failures="0"' in (tmp_path / "r.xml").read_text(encoding="utf-8")


def test_validate_reads_a_text_when_asked(cli: Cli, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("It is a truth universally acknowledged", encoding="utf-8")
    words = ("validate", artifact, "-q", "--steps", "4", "--text", tmp_path / "book.txt", "--quality-tokens")
    said = cli(*words, "30", "--json", tmp_path / "r.json")
    assert said.code == 0, said.out
    (row,) = outcome.read(tmp_path / "r.json").quality
    assert (row.outcome, row.text, row.reading and row.reading.tokens) == (Outcome.PASS, "book.txt", 30)
    short = cli(*words, "300")
    assert short.code == 1
    assert "book.txt has 38 tokens, too few to predict 300" in short.out
    assert cli("validate", artifact, "-q", "--text", tmp_path / "none.txt").code == 2


def test_validate_in_a_place_that_is_not_here_is_3(cli: Cli, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.backends.ort.missing", lambda device: "this machine has no such thing")
    said = cli("validate", artifact, "-q")
    assert said.code == 3
    assert "missing" in said.out
    assert "this machine has no such thing" in said.out


def test_validate_in_a_place_that_cannot_read_the_artifact_is_2(cli: Cli, artifact: Path) -> None:
    said = cli("validate", artifact, "--on", "coreml:ane", "-q")
    assert said.code == 2
    assert ".mlpackage" in said.err


def test_an_altered_artifact_does_not_pass(cli: Cli, artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / artifact.name
    shutil.copytree(artifact, copy)
    with (copy / "model.onnx.data").open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"\xff" * 4)
    said = cli("validate", copy, "-q")
    assert said.code == 1
    assert "SHA-256" in said.out


def test_bench_measures(cli: Cli, artifact: Path, tmp_path: Path) -> None:
    said = cli("bench", artifact, "--prompt", "4", "--tokens", "30", "--json", tmp_path / "b.json")
    (row,) = outcome.read(tmp_path / "b.json").latency
    assert said.code == 0, said.out
    assert row.decode is not None
    assert len(row.decode.seconds) == 30
    assert row.prefill is not None
    assert row.prefill.tokens == 4


def test_generate_continues_the_prompt_and_repeats_with_a_seed(cli: Cli, artifact: Path) -> None:
    words = ("generate", artifact, "She was ", "--tokens", "60", "--temperature", "0.8", "-q", "--seed")
    first, again, other = cli(*words, "1"), cli(*words, "1"), cli(*words, "2")
    assert first.code == 0
    assert first.out.startswith("She was ")
    assert first.out == again.out != other.out
    assert len(first.out) == len("She was ") + 60 + 1
    told = json.loads(cli(*words, "1", "--json").out)
    assert told["text"] == first.out.removeprefix("She was ")[:-1]
    assert (told["prompt_tokens"], told["tokens"]) == (len("She was "), 59)  # the last token is not fed
    assert told["seconds"] > 0


def test_targets_in_json_agree_with_the_table(cli: Cli) -> None:
    survey = json.loads(cli("targets", "--json", "-q").out)
    printed = cli("targets", "-q").out
    assert {"onnx-cpu", "coreml", "executorch-xnnpack"} <= {row["name"] for row in survey["targets"]}
    assert {row["place"]: row["missing"] for row in survey["places"]}["ort:cpu"] is None
    assert all(row["name"] in printed for row in survey["targets"])
    assert all(row["missing"] is None or row["missing"] in printed for row in survey["places"])


def test_the_demo_can_be_repeated(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstration, "PLAN", {"fp32": ("onnx-cpu",)})
    first = cli("demo", "-o", tmp_path, "-q")
    written = {path.name for path in tmp_path.iterdir()}
    assert first.code == 0, first.out
    assert {"results.json", "report.html"} < written
    assert len(written) == 3
    found = outcome.read(tmp_path / "results.json")
    assert [row.outcome for row in (*found.parity, *found.latency)] == [Outcome.PASS, Outcome.PASS]
    again = cli("demo", "-o", tmp_path, "-q")
    assert {path.name for path in tmp_path.iterdir()} == written
    assert spoken(again.out) == spoken(first.out)  # the same seed, the same text
    assert len(spoken(first.out)) == len("The ") + 200


def spoken(printed: str) -> str:
    """The text below the tables."""
    return printed[printed.index("\n\nThe ") + 2 : -1]


def test_the_demo_says_when_something_fails(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtimes.backends import ort

    monkeypatch.setattr(demonstration, "PLAN", {"fp32": ("onnx-cpu",)})
    monkeypatch.setattr(ort, "missing", lambda device: "it was taken away")
    said = cli("demo", "-o", tmp_path, "-q")
    assert said.code == 3
    assert said.out.count("it was taken away") >= 1
    assert "\n\nThe " not in said.out
