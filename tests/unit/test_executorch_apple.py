"""ExecuTorch for Apple: Core ML inside a program is taken out and interpreted; MLX is compiled by generated files."""

from __future__ import annotations

import inspect
import json
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower

from exporter.passes import pte_coreml
from exporter.quiet import quiet
from exporter.targets import executorch_coreml, executorch_mlx
from runtimes import manifest
from runtimes.backends import mil
from runtimes.contract import HALF_FILL
from runtimes.errors import BadArtifact, Missing
from runtimes.manifest import open_artifact
from runtimes.mil import from_pte
from runtimes.mil.package import Package
from runtimes.pte.program import Program
from tests.oracle import trace_of
from tests.unit.small_exports import TOKENS, assert_whole, exported, in_chunks, in_torch, stepping
from validation.lint import linter

pytestmark = pytest.mark.slow

CHUNK = 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 7 in float32 with a method for four tokens."""
    return exported("7", "executorch-coreml", tmp_path_factory.mktemp("whole"), layers=2, prefill=(CHUNK,))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 4 in float16, whose running maximum starts far below what float16 can hold."""
    return exported("4", "executorch-coreml", tmp_path_factory.mktemp("half"), precision="fp16")


@pytest.fixture(scope="module")
def mlx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 7 with a method for four tokens."""
    return exported("7", "executorch-mlx", tmp_path_factory.mktemp("mlx"), prefill=(CHUNK,))


def test_core_ml_takes_every_method_as_a_whole(whole: Path, half: Path) -> None:
    assert_whole(whole, "CoreMLBackend", ["decode", f"prefill{CHUNK}"])
    assert_whole(half, "CoreMLBackend", ["decode"])


def test_methods_share_one_package(whole: Path) -> None:
    program = Program(whole / "model.pte")
    calls = [from_pte.call(program, method) for method in ("decode", f"prefill{CHUNK}")]
    assert calls[0].data is calls[1].data
    assert [call.function for call in calls] == ["decode", f"prefill{CHUNK}"]


def test_steps_and_prompts_agree_with_torch(whole: Path) -> None:
    session, wanted = mil.open_session(open_artifact(whole), "cpu"), in_torch(whole)
    assert session.placement().evidence == "interpreted"
    assert stepping(session, wanted) < 2e-5
    assert in_chunks(session, wanted, [CHUNK, len(TOKENS) - CHUNK]) < 2e-5


def test_half_precision_rounds_what_is_fed_back(half: Path) -> None:
    document = manifest.read(half)
    assert {tensor.dtype for tensor in document.state} == {"float32"}
    assert min(tensor.fill for tensor in document.state) == HALF_FILL
    session = mil.open_session(open_artifact(half), "cpu")
    state = session.read_state(session.step(TOKENS[0], session.initial_state()).state)
    for tensor in state.values():
        np.testing.assert_array_equal(tensor, tensor.astype(np.float16).astype(np.float32))
    error = float(np.abs(trace_of(session, TOKENS).logits - in_torch(half).logits).max())
    assert 1e-4 < error < 5e-2


def test_random_identifiers_are_replaced_by_the_content_s(whole: Path, half: Path, tmp_path: Path) -> None:
    written, path = (whole / "model.pte").read_bytes(), tmp_path / "model.pte"
    found = set(re.findall(rb"executorch_([0-9a-f-]{36})", written))
    assert len(found) == 1
    assert not found & set(re.findall(rb"executorch_([0-9a-f-]{36})", (half / "model.pte").read_bytes()))
    path.write_bytes(written.replace(*found, str(uuid.uuid4()).encode()))
    assert path.read_bytes() != written
    pte_coreml.make_reproducible(path, ["decode", f"prefill{CHUNK}"])
    assert path.read_bytes() == written


def test_a_package_that_was_taken_out_names_its_functions(whole: Path, tmp_path: Path) -> None:
    data = from_pte.call(Program(whole / "model.pte"), "decode").data
    package = Package(from_pte.unpack(data, tmp_path / "out"))
    assert package.functions == ("decode", f"prefill{CHUNK}")


def test_the_lint_reads_a_shared_package_once_with_all_its_functions(whole: Path, half: Path) -> None:
    single, narrow = (linter.lint_artifact(open_artifact(folder)) for folder in (whole, half))
    assert {finding.rule: finding.severity for finding in single.findings}["fp32-compute"] == "error"
    assert single.findings[0].places[0].startswith("decode: ")
    linears = next(finding for finding in single.findings if finding.rule == "linear")
    assert linears.count == 2 * (12 + 14 + 1) + 2  # projections, without value adapters at first; masks of each prefill
    assert narrow.count("error") == 0
    assert {finding.rule for finding in narrow.findings} >= {"linear", "indexing", "fp32-io"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:-1], "cannot be read"),
        (lambda data: data.replace(b"nosj.atadatem", b"nosj.atadatum"), "metadata.json cannot be read"),
        (lambda data: data.replace(b'"egakcaplm.ledom"', b'"egakcaplm.l/../"'), "file name"),
    ],
)
def test_a_delegate_s_damaged_data_is_refused(
    whole: Path, change: Callable[[bytes], bytes], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program(whole / "model.pte")
    damaged = change(from_pte.call(program, "decode").data)
    monkeypatch.setattr(program, "shared", lambda key: damaged)
    with pytest.raises(BadArtifact, match=reason):
        from_pte.call(program, "decode")


def test_a_reference_to_a_package_that_is_absent_is_refused(whole: Path, tmp_path: Path) -> None:
    content = (whole / "model.pte").read_bytes()
    key = re.search(rb'"key": "(coreml_executorch_[0-9a-f-]{36})"', content)
    assert key is not None
    start = key.start(1)
    (tmp_path / "model.pte").write_bytes(content[:start] + b"X" + content[start + 1 :])
    program = Program(tmp_path / "model.pte")
    refused = 0
    for method in ("decode", f"prefill{CHUNK}"):
        try:
            from_pte.call(program, method)
        except BadArtifact as error:
            assert "has no data called 'Xoreml_executorch" in error.message
            refused += 1
    assert refused == 1


class Sines(torch.nn.Module):
    """What no delegate is asked to take."""

    def forward(self, tokens: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.sin(memory), memory + tokens


def test_a_program_without_core_ml_is_refused_with_its_operators(tmp_path: Path) -> None:
    with quiet():
        program = torch.export.export(Sines(), (torch.zeros(1, dtype=torch.int64), torch.zeros(1, 4)))
        (tmp_path / "model.pte").write_bytes(to_edge_transform_and_lower(program).to_executorch().buffer)
    with pytest.raises(BadArtifact, match=r"not one call of CoreMLBackend but .*1 x aten::sin"):
        from_pte.call(Program(tmp_path / "model.pte"), "forward")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ({"input_dtype": "int32"}, {"input_dtype": "int64"}, r"tokens of method decode .* is int32\[1\]"),
        ({"shape": [1, 32]}, {"shape": [1, 31]}, r"float32\[1, 32\], the manifest says float32\[1, 31\]"),
        ({"vocab": 33}, {"vocab": 34}, r"logits of method decode .* the manifest says float32\[1, 34\]"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    half: Path, old: Mapping[str, Any], new: Mapping[str, Any], reason: str, tmp_path: Path
) -> None:
    text = (half / "manifest.json").read_text()
    flat = json.dumps(json.loads(text))
    replaced = flat.replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1])
    assert replaced != flat
    (tmp_path / "manifest.json").write_text(replaced)
    (tmp_path / "model.pte").write_bytes((half / "model.pte").read_bytes())
    for path in half.iterdir():
        if not (tmp_path / path.name).exists():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(BadArtifact, match=reason):
        mil.open_session(open_artifact(tmp_path), "cpu")


def without(*names: str) -> Any:
    """A find_spec that does not find these."""
    from importlib.util import find_spec

    return lambda name: None if name in names else find_spec(name)


def test_without_executorch_a_program_cannot_be_read(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mil, "find_spec", without("executorch"))
    with pytest.raises(Missing, match="needs the Python package executorch"):
        mil.open_session(open_artifact(half), "cpu")


@pytest.mark.parametrize("name", ["executorch", "executorch.backends.apple.coreml.executorchcoreml", "coremltools"])
def test_core_ml_says_what_it_lacks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert executorch_coreml.missing() is None
    monkeypatch.setattr(executorch_coreml, "find_spec", without(name))
    assert name.rpartition(".")[2] in (executorch_coreml.missing() or "")


def test_mlx_takes_every_method_as_a_whole(mlx: Path) -> None:
    assert_whole(mlx, "MLXBackend", ["decode", f"prefill{CHUNK}"])
    assert (mlx / "model.pte").read_bytes().count(b"MLX0") == 2


def test_mlx_s_files_are_not_generated_into_the_package(mlx: Path) -> None:
    from executorch.backends.mlx import MLXPartitioner

    used, installed = Path(inspect.getfile(MLXPartitioner)), Path(torch.__file__).parents[1]
    assert not used.is_relative_to(installed)
    assert not (installed / "executorch/backends/mlx" / executorch_mlx.GENERATED).exists()


@pytest.mark.parametrize("absent", ["executorch", "executorch.backends.mlx"])
def test_mlx_says_what_it_lacks(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert executorch_mlx.missing() is None
    monkeypatch.setattr(executorch_mlx, "find_spec", without(absent))
    assert f"the Python package executorch {'is not' if absent == 'executorch' else 'has no MLX'}" in (
        executorch_mlx.missing() or ""
    )


def test_mlx_without_generator_and_generated_files_says_to_build_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(executorch_mlx, "_installed", lambda: tmp_path)
    assert "nor serialization/generate.py: build it from source on a Mac" in (executorch_mlx.missing() or "")
    (tmp_path / "serialization").mkdir()
    (tmp_path / executorch_mlx.GENERATED).touch()
    assert executorch_mlx.missing() is None
