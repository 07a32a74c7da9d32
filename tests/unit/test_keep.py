"""The list of matrices that stay unquantised: how it is written, what it means, what targets make of it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import onnx
import pytest
import torch

from exporter import export, keep, registry
from exporter.contract import Spelling
from exporter.model import open_model
from exporter.models.layers import StepModel
from exporter.passes import torch_quantise
from exporter.progress import silent
from runtimes import manifest
from runtimes.errors import WrongCall
from tests.unit.small_exports import checkpoint

LIST = {"keep": "blocks.0.att.key,blocks.*.ffn,emb"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keep") / "7.pth"
    torch.save(checkpoint("7", 1), path)
    return path


def test_a_file_of_names_is_the_same_as_the_names(tmp_path: Path) -> None:
    path = tmp_path / "keep.txt"
    path.write_text("head.weight  # the dearest\n\nblocks.0.att.key, head\nblocks.1\n")
    assert keep.read(str(path)) == keep.read("head,blocks.0.att.key,blocks.1") == "head,blocks.0.att.key,blocks.1"


@pytest.mark.parametrize("text", ["", ",", " # nothing"])
def test_no_name_at_all_is_refused(text: str) -> None:
    with pytest.raises(WrongCall, match="names no matrix"):
        keep.read(text)


@pytest.mark.parametrize(
    ("name", "parameter", "held"),
    [
        ("head", "head.weight", True),
        ("emb", "emb", True),
        ("blocks.1", "blocks.1.att.key.weight", True),
        ("blocks.1", "blocks.10.att.key.weight", False),
        ("blocks.*.ffn", "blocks.3.ffn.value.weight", True),
        ("blocks.*.att.w", "blocks.3.att.w.up.weight", True),
        ("att.key", "blocks.1.att.key.weight", False),
    ],
)
def test_a_name_stands_for_the_matrix_or_all_within_it(name: str, parameter: str, held: bool) -> None:
    assert keep.holds({"keep": name}, parameter) is held


def test_a_name_that_the_model_lacks_is_refused_with_the_closest(source: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongCall, match=r"this model has no matrix 'blocks\.0\.att\.keys'") as refused:
        export(source, targets=["onnx-cpu"], precision="int8", options={"keep": "blocks.0.att.keys"}, out=tmp_path)
    assert str(refused.value.hint).startswith("did you mean 'blocks.0.att.key'?")


@pytest.mark.parametrize("state", ["separate", "stacked"])
def test_onnx_leaves_them_float32(source: Path, tmp_path: Path, state: str) -> None:
    (made,) = export(source, targets=["onnx-cpu"], precision="int8", options=LIST | {"state": state}, out=tmp_path)
    graph = onnx.load(made / "decode.onnx", load_external_data=False).graph
    names = {tensor.name.removeprefix("model.") for tensor in graph.initializer}
    kept = {"blocks.0.att.key.weight", "blocks.0.ffn.key.weight", "blocks.0.ffn.value.weight", "emb"}
    assert kept <= names
    assert {name for name in names if name.endswith(".weight")} & {"head.weight", "blocks.0.att.value.weight"} == set()
    document = manifest.read(made)
    assert document.target.options["keep"] == LIST["keep"]
    assert [kept.tensors for kept in document.precision.kept[:3]] == LIST["keep"].split(",")


def test_a_step_module_leaves_them_as_they_are(source: Path) -> None:
    model = open_model(source)
    step = cast(StepModel, model.build(Spelling()))
    grid = torch_quantise.PRESETS["8da4w"]
    torch_quantise.quantise(step, model.spec, grid, silent, wide=lambda name: keep.holds(LIST, name))
    plain = {name for name, made in step.named_parameters() if type(made) is torch.nn.Parameter and made.dim() == 2}
    assert {"blocks.0.att.key.weight", "blocks.0.ffn.value.weight", "emb"} <= plain
    assert "head.weight" not in plain and "blocks.0.att.value.weight" not in plain


def test_every_target_that_quantises_matrix_by_matrix_takes_the_list() -> None:
    taking = {name for name, target in registry.targets().items() if keep.OPTION in target.options}
    assert {"onnx-cpu", "executorch-xnnpack", "coreml", "coreml-ane", "coreai", "openvino"} <= taking
