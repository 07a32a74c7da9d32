"""`localise` from artifact to exit code, and the line of `validate` that points at it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rwkv_export.main import run

from .conftest import Cli

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    model = out / "tiny.pth"
    assert run(["synth", "-q", "--layers", "1", "--width", "64", "--vocab", "257", "-o", str(model)]) == 0
    assert run(["export", str(model), "-q", "-t", "onnx-cpu", "-o", str(out)]) == 0
    return out / "tiny.onnx-cpu.fp32"


def test_a_healthy_artifact_is_0(cli: Cli, artifact: Path) -> None:
    said = cli("localise", "-q", artifact, "--steps", "1")
    assert said.code == 0
    assert "Nothing is lost; most is added by" in said.out
    assert "blocks.0" in said.out


def test_a_wrong_one_is_1_and_validate_points_at_it(cli: Cli, artifact: Path) -> None:
    path = artifact / "manifest.json"
    document = json.loads(path.read_text())
    one, _, other = document["state"]
    one["input"], other["input"] = other["input"], one["input"]
    path.write_text(json.dumps(document))
    said = cli("validate", "-q", artifact, "--steps", "4")
    assert said.code == 1
    assert f"`rwkv-export localise {artifact} --on ort:cpu` finds where" in said.out
    said = cli("localise", "-q", artifact)
    assert said.code == 1
    assert "Parity is lost first in blocks.0.att.shift: Sub node_sub" in said.out
    assert "wrong-operand: two values of one shape" in said.out
    said = cli("localise", "-q", artifact, "--json")
    found = json.loads(said.out)
    assert (said.code, found["lost"], found["first"]["cause"]["name"]) == (1, True, "wrong-operand")


def test_a_place_that_cannot_open_it_is_2(cli: Cli, artifact: Path) -> None:
    assert cli("localise", "-q", artifact, "--on", "mil:cpu").code == 2
    assert cli("localise", "-q", artifact.parent / "nothing").code == 2
