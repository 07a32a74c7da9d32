"""OpenVINO's own format: its numbers beside torch's, its device and types read back, weights shared and compressed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import runtimes
from exporter import export
from exporter.targets import openvino as target
from runtimes import manifest
from runtimes import openvino as installed
from runtimes.backends import openvino
from runtimes.contract import Session
from runtimes.errors import BadArtifact, Missing, WrongCall
from runtimes.manifest import open_artifact
from tests.requirements import require
from tests.unit.small_exports import exported, in_chunks, in_torch, stepping, with_shifts_swapped

pytestmark = pytest.mark.slow

CHUNK = 4
BOUND = 2e-5


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 7 with two layers, and with a graph for four tokens."""
    require("openvino", target.missing())
    return exported("7", "openvino", tmp_path_factory.mktemp("whole"), layers=2, prefill=(CHUNK,))


@pytest.fixture(scope="module")
def session(whole: Path) -> Iterator[Session]:
    with closing(runtimes.open_on(open_artifact(whole), "openvino:cpu")) as opened:
        yield opened


@pytest.fixture(scope="module")
def four_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 7 in 4 bits, a matrix of the only layer kept."""
    require("openvino", target.missing() or installed.cannot_compress())
    folder = tmp_path_factory.mktemp("four")
    source = exported("7", "torch", folder).parent / "7.pth"
    (made,) = export(
        source, targets=["openvino"], precision="int4", options={"keep": "blocks.0.att.key"}, out=folder / "made"
    )
    return made


def test_steps_and_prompts_are_torchs(whole: Path, session: Session) -> None:
    wanted = in_torch(whole)
    assert 0 < stepping(session, wanted) < BOUND
    assert in_chunks(session, wanted, (1, 4, 3, 2)) < BOUND


@pytest.mark.parametrize(("version", "precision", "bound"), [("4", "fp32", BOUND), ("6", "fp16", 3e-2)])
def test_other_versions_step_as_in_torch(version: str, precision: str, bound: float, tmp_path: Path) -> None:
    require("openvino", target.missing())
    made = exported(version, "openvino", tmp_path, precision=precision)
    with closing(runtimes.open_on(open_artifact(made), "openvino:cpu")) as opened:
        error = stepping(opened, in_torch(made))
        assert error < bound
        assert (error > BOUND) is (precision == "fp16")
        assert not {unit for unit in opened.placement().nodes if "f16" in unit}


def test_it_computes_in_float32_on_the_processor_as_openvino_itself_says(session: Session) -> None:
    placed = session.placement()
    assert (placed.requested, placed.observed, placed.evidence) == ("openvino:cpu", "openvino:cpu", "run")
    assert placed.nodes["CPU f32"] > 50
    assert not {unit for unit in placed.nodes if "bf16" in unit or "f16" in unit}


def test_a_state_stays_valid_after_it_was_stepped_from(session: Session) -> None:
    state = session.step(3, session.initial_state()).state
    first, _, again = session.step(7, state), session.step(19, state), session.step(7, state)
    assert np.array_equal(first.logits, again.logits)


def test_the_graphs_share_one_file_of_weights(whole: Path) -> None:
    files = {file.path: file.bytes for file in manifest.read(whole).files}
    assert {name for name in files if name.endswith(".bin")} == {installed.WEIGHTS}
    document = manifest.read(whole)
    assert files[installed.WEIGHTS] < 1.3 * 4 * document.model.parameters
    for graph in document.graphs:
        assert 'offset="' in (whole / graph.file).read_text()


def test_the_same_checkpoint_gives_the_same_bytes_and_a_damaged_graph_is_refused(whole: Path, tmp_path: Path) -> None:
    (again,) = export(whole.parent / "7.pth", targets=["openvino"], prefill=[CHUNK], out=tmp_path)
    assert manifest.read(again).files == manifest.read(whole).files
    artifact = open_artifact(again)
    (again / "decode.xml").write_text("<net/>")
    with pytest.raises(BadArtifact, match="OpenVINO cannot load"):
        openvino.open_session(artifact, "cpu")


def test_a_manifest_that_takes_one_state_for_another_gives_other_numbers(whole: Path) -> None:
    with closing(openvino.open_session(with_shifts_swapped(open_artifact(whole)), "cpu")) as opened:
        assert stepping(opened, in_torch(whole)) > 100 * BOUND


def test_four_bits_are_computed_with_as_such_and_what_is_kept_is_not(four_bits: Path) -> None:
    with closing(runtimes.open_on(open_artifact(four_bits), "openvino:cpu")) as opened:
        assert BOUND < stepping(opened, in_torch(four_bits)) < 12
        assert opened.placement().nodes["CPU u4"] > 0
    kept = {kept.tensors: kept.dtype for kept in manifest.read(four_bits).precision.kept}
    assert kept["blocks.0.att.key"] == "float32"
    assert kept["head.weight"] == kept["emb"] == "int8"
    text = (four_bits / "decode.xml").read_text()
    assert 'name="blocks.0.att.key.weight"' in text


@pytest.mark.parametrize("device", ["gpu", "npu"])
def test_a_device_that_is_not_there_is_missing_in_a_sentence(device: str, whole: Path) -> None:
    reason = openvino.missing(device)
    if reason is None:
        pytest.skip(f"this machine has a {device}")
    assert reason.startswith(f"OpenVINO finds no {device.upper()} with a driver on this machine, it finds CPU")
    with pytest.raises(Missing):
        openvino.open_session(open_artifact(whole), device)


def test_what_lacks_is_said_with_what_brings_it(monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda name: None if name == "nncf" else name)
    with pytest.raises(Missing, match="nncf is not installed"):
        export(whole.parent / "7.pth", targets=["openvino"], precision="int8")
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    assert openvino.missing("cpu") == target.missing()
    assert str(target.missing()).endswith("is not installed (pip install 'rwkv-export[openvino]')")


def test_a_compressor_that_wants_a_later_openvino_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"nncf": "3.4.0", "openvino": "2025.4.1"}
    monkeypatch.setattr(installed, "find_spec", lambda name: name)
    monkeypatch.setattr(installed, "version", versions.__getitem__)
    assert installed.cannot_compress() == "nncf 3.4.0 needs a later openvino than 2025.4.1: pip install 'nncf<3.3'"
    versions["nncf"] = "3.2.0"
    assert installed.cannot_compress() is None


def test_nothing_is_kept_of_what_is_not_quantised(whole: Path) -> None:
    with pytest.raises(WrongCall, match="precision fp32 quantises nothing to keep"):
        export(whole.parent / "7.pth", targets=["openvino"], options={"keep": "head"})
