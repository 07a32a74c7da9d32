"""LiteRT: converted in its environment and stepped by its interpreter there; what lies about a file is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import runtimes
from exporter import environments, export, graph
from exporter.targets import litert as target
from runtimes import litert, manifest, registry
from runtimes.backends.litert import placed
from runtimes.environments.litert import ENVIRONMENT
from runtimes.errors import BadArtifact, Missing, WrongCall
from runtimes.litert import convert
from tests.requirements import require
from tests.unit.small_exports import exported, in_chunks, in_torch, stepping
from validation import validate
from validation.outcome import Outcome

pytestmark = pytest.mark.slow

FOLDER = ENVIRONMENT.folder  # before the cache becomes that of the test run
MISSING = litert.missing(litert.CONVERTER) or litert.missing(litert.INTERPRETER)
OPERATORS = (
    ("EMBEDDING_LOOKUP", [0, 1], [2]),
    ("MUL", [2, 3], [4]),
    ("ADD", [4, 2], [5]),
    ("EXP", [5], [6]),
    ("DELEGATE", [2, 3], [5]),
)


@pytest.fixture(scope="module")
def environment(own_cache: Path) -> Iterator[None]:
    """The user's environment, seen from the cache of the test run."""
    require("litert", MISSING)
    place = own_cache / "rwkv-export" / "environments" / "litert"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(FOLDER)
    yield
    place.unlink()


@pytest.fixture(scope="module")
def small(environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("7", "litert", tmp_path_factory.mktemp("litert"), prefill=[2])


def test_steps_and_prompts_are_those_of_torch(small: Path) -> None:
    wanted, session = in_torch(small), runtimes.open_session(small)
    try:
        assert stepping(session, wanted) < 1e-5
        assert in_chunks(session, wanted, [2, 5, 3]) < 1e-5
    finally:
        session.close()


def test_validation_passes_where_it_says_and_names_what_ran(small: Path) -> None:
    (row,) = validate([small], checkpoint=small.parent / "7.pth", steps=16).parity
    assert row.outcome is Outcome.PASS, row.reasons
    assert (row.identity.requested, row.identity.observed) == ("litert:cpu", "litert:cpu")
    assert row.identity.nodes["XNNPACK"] > 50
    assert row.identity.nodes["EMBEDDING_LOOKUP"] == 1


def test_one_file_has_every_signature_and_the_weights_once(small: Path) -> None:
    document = manifest.read(small)
    assert {file.name for file in small.iterdir()} == {"README.md", "manifest.json", "model.tflite"}
    assert [(graph.file, graph.function) for graph in document.graphs] == [
        ("model.tflite", "decode"),
        ("model.tflite", "prefill2"),
    ]
    content = (small / "model.tflite").read_bytes()
    head = torch.load(small.parent / "7.pth", weights_only=True)["head.weight"].numpy().tobytes()
    assert content.count(head) == 1
    assert str(Path.home()).encode() not in content
    assert dict(document.tools)["litert-torch"] == "0.10.0"


def test_the_program_in_its_readme_gives_the_same_logits(small: Path, tmp_path: Path) -> None:
    _, _, program = (small / "README.md").read_text(encoding="utf-8").rpartition("```python\n")
    program = program.partition("```")[0]
    assert "get_signature_runner" in program
    (python, *_), env = litert.process(litert.INTERPRETER, "")
    kept = f"{program}\nnp.save({str(tmp_path / 'logits.npy')!r}, logits)"
    subprocess.run([python, "-c", kept], env=env, cwd=small, check=True, capture_output=True)
    session = runtimes.open_session(small)
    step = session.step(1, session.initial_state())
    session.close()
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy").reshape(-1), step.logits)


def misnamed(document: Any) -> Any:
    first, *others = document.state
    return replace(document, state=(replace(first, output="nobody"), *others))


def misshapen(document: Any) -> Any:
    first, *others = document.state
    return replace(document, state=(replace(first, shape=(1, 16)), *others))


def without_signature(document: Any) -> Any:
    return replace(document, graphs=(replace(document.graphs[0], function="nothing"),))


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (misnamed, "disagree about the port 'blocks_0_att_shift_next'"),
        (misshapen, "disagree about the port 'blocks_0_att_shift'"),
        (without_signature, "no signature 'nothing'"),
    ],
)
def test_a_manifest_that_tells_of_another_file_is_refused(
    small: Path, tmp_path: Path, lie: Callable[[Any], Any], said: str
) -> None:
    shutil.copytree(small, tmp_path / "lying")
    manifest.write(lie(manifest.read(small)), tmp_path / "lying")
    with pytest.raises(BadArtifact, match=said):
        runtimes.open_session(tmp_path / "lying")


def test_a_file_that_is_none_is_refused(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "broken")
    (tmp_path / "broken" / "model.tflite").write_bytes(b"no flatbuffer at all" * 9)
    document = manifest.read(small)
    manifest.write(replace(document, files=manifest.list_files(tmp_path / "broken")), tmp_path / "broken")
    with pytest.raises(BadArtifact, match="LiteRT cannot load"):
        runtimes.open_session(tmp_path / "broken")


def test_an_archive_that_can_run_code_is_not_converted(tmp_path: Path) -> None:
    torch.save({"anything": torch.zeros(1)}, tmp_path / "decode.pt2")
    programs = {"decode": tmp_path / "decode.pt2"}
    with pytest.raises(BadArtifact, match=r"is not a plain torch\.export archive"):
        convert.convert(programs, tmp_path / "made.tflite", inputs=["tokens"], outputs=["logits"])
    assert not (tmp_path / "made.tflite").exists()


def test_what_the_converter_refuses_is_told_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = "import sys; print('much talk', file=sys.stderr); sys.exit('the converter says: no such operator')"
    monkeypatch.setattr(target, "missing", lambda: None)
    monkeypatch.setattr(litert, "process", lambda *_: ([sys.executable, "-c", refusing], None))
    with pytest.raises(WrongCall, match="LiteRT cannot convert RWKV-4: the converter says: no such operator"):
        exported("4", "litert", tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"4.pth"}


def test_what_a_delegate_took_is_told_from_what_it_left() -> None:
    operators = [
        {"index": index, "op_name": name, "inputs": inputs, "outputs": outputs}
        for index, (name, inputs, outputs) in enumerate(OPERATORS)
    ]
    assert placed(operators) == {"XNNPACK": 2, "EMBEDDING_LOOKUP": 1, "EXP": 1}
    assert placed(operators[:-1]) == {"EMBEDDING_LOOKUP": 1, "MUL": 1, "ADD": 1, "EXP": 1}


def test_weights_beyond_a_flatbuffer_are_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "missing", lambda: None)
    monkeypatch.setattr(target, "LIMIT", 1000)
    monkeypatch.setattr(graph, "load_weights", None)  # would fail if it were called
    with pytest.raises(WrongCall, match=r"bytes of float32 weights do not fit into one \.tflite file of 2 GiB"):
        exported("7", "litert", tmp_path)


def test_without_its_environment_everything_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(type(ENVIRONMENT), "unfit", lambda self: None)
    monkeypatch.setattr(litert, "find_spec", lambda name: None)
    sentence = "the litert environment is absent, run `rwkv-export setup litert`"
    with pytest.raises(Missing, match=sentence) as raised:
        export(targets=["litert"], out=tmp_path)
    assert raised.value.exit_code == 3
    assert registry.load("litert").missing("cpu") == f"{sentence} or `pip install ai-edge-litert`"

    folder = exported("4", "torch", tmp_path)
    (folder / "decode.pt2").rename(folder / "decode.tflite")
    document = manifest.read(folder)
    graphs = tuple(replace(graph, file="decode.tflite") for graph in document.graphs)
    named = replace(document.target, name="litert", runtime="litert", device="cpu", options={})
    files = manifest.list_files(folder)
    manifest.write(replace(document, target=named, graphs=graphs, files=files), folder)
    (row,) = validate([folder], checkpoint=tmp_path / "4.pth").parity
    assert row.outcome is Outcome.MISSING
    assert sentence in " ".join(row.reasons)
    assert environments.known()["litert"] is ENVIRONMENT
