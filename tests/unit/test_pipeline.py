"""Exporting as a whole: the same bytes every time, refusals that leave nothing behind, README and tokenizer."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter import export, registry
from exporter.contract import Written
from exporter.targets import pytorch
from runtimes import manifest
from runtimes.errors import BadCheckpoint, WrongCall
from runtimes.manifest import Graph, Precision
from runtimes.tokenizer import PILE_FILE, open_tokenizer
from tests.conftest import AWKWARD, Exports
from tests.models import Tensors, random_checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TARGETS = ("torch", "onnx-cpu", "coreml", "executorch-xnnpack", "executorch-portable")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def saved(weights: Tensors, path: Path) -> Path:
    torch.save(weights, path)
    return path


def random_weights(version: str) -> Tensors:
    """Those of `Exports.checkpoint`."""
    return random_checkpoint(version, **AWKWARD, seed=3)


# The same bytes


AGAIN = "import sys, exporter; exporter.export(sys.argv[1], targets=sys.argv[3:], out=sys.argv[2])"


@pytest.fixture(scope="module")
def again(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 7 on every target, from another process in another folder, with Python's sets in another order."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(exports.checkpoint("7"), elsewhere)
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", AGAIN, f"./{exports.checkpoint('7').name}", "out", *TARGETS]
    subprocess.run(command, cwd=elsewhere, env=environment, check=True, capture_output=True)
    return elsewhere / "out"


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_inputs_give_the_same_bytes(exports: Exports, again: Path, target: str) -> None:
    one, other = files(exports("7", target)), files(again / f"random-7.{target}.fp32")
    assert list(one) and set(one) == set(other)
    assert [name for name in one if one[name] != other[name]] == []


@pytest.mark.parametrize("target", TARGETS)
def test_no_file_says_where_or_by_whom_it_was_made(exports: Exports, target: str) -> None:
    folder = exports("7", target)
    private = {str(ROOT), str(folder.parent), str(exports.checkpoint("7").parent), str(Path.home()), sys.prefix}
    for name, data in files(folder).items():
        assert [text for text in private if text.encode() in data] == [], name


def test_the_manifest_has_no_time_and_no_path(exports: Exports) -> None:
    text = (exports("7", "onnx-cpu") / "manifest.json").read_text()
    assert not re.search(r"20\d\d-\d\d|\d\d:\d\d", text)
    assert str(json.loads(text)["source"]["file"]) == "random-7.pth"


# The artifact's README


@pytest.mark.parametrize(
    ("target", "precision", "options", "prefill"),
    [
        *((target, "fp32", {}, ()) for target in TARGETS),
        ("onnx-cpu", "fp32", {"names": "rwkv-mobile"}, (2,)),
        ("coreml", "fp16", {"ios": "18", "state": "mlstate"}, ()),
    ],
)
def test_the_readme_names_every_graph_and_port(
    exports: Exports, target: str, precision: str, options: Mapping[str, str], prefill: tuple[int, ...]
) -> None:
    folder = exports("7", target, precision=precision, options=options, prefill=prefill)
    text, document = (folder / "README.md").read_text(), manifest.read(folder)
    for graph in document.graphs:
        assert {f"`{graph.file}`", f"`{graph.input}` {graph.input_dtype}", f"`{graph.output}`"} <= spans(text)
    for tensor in document.state:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {tensor.name} |")]
        shape = " x ".join(map(str, tensor.shape))
        assert [cell.strip() for cell in row.strip("|").split("|")] == [
            tensor.name,
            ", ".join(tensor.axes),
            shape,
            tensor.dtype,
            str(tensor.fill),
            f"`{tensor.input}`",
            f"`{tensor.output}`",
        ]
    assert "{" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)  # no placeholder was left


def spans(text: str) -> set[str]:
    """Cells of the README's tables, whole and split at the `+` of a file and its function."""
    cells = {cell.strip() for line in text.splitlines() if line.startswith("|") for cell in line.split("|")}
    return cells | {part for cell in cells for part in re.findall(r"`[^`]+`", cell)}


def test_the_python_of_the_readme_runs(
    exports: Exports, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exports("7", "torch")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(folder.parent)
    exec(code, {})  # noqa: S102  our own text
    token, seconds = capsys.readouterr().out.split()
    assert 0 <= int(token) < AWKWARD["vocab"]
    assert float(seconds) > 0


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ({"targets": []}, "no target was named", "known: coreai, coreml"),
        ({"targets": ["onxn-cpu"]}, "unknown target 'onxn-cpu'", "did you mean 'onnx-cpu'? known: coreai, coreml"),
        ({"targets": ["torch"], "precision": "fp23"}, "target torch has no precision 'fp23'", "did you mean 'fp32'?"),
        (
            {"targets": ["coreml", "torch"], "precision": "mixed"},
            "target torch has no precision 'mixed'",
            "known: bf16, fp16, fp32",
        ),
        ({"targets": ["torch"], "options": {"ios": "17"}}, "no option 'ios' in torch", "these targets have no options"),
        ({"targets": ["coreml"], "options": {"oss": "17"}}, "no option 'oss' in coreml", "did you mean 'ios'?"),
        ({"targets": ["coreml"], "options": {"ios": "9"}}, "option ios cannot be '9'", "known: 16, 17, 18"),
        ({"targets": ["torch"], "prefill": [4, 1]}, "prefill size 1 is not between 2 and 512", None),
        ({"targets": ["torch"], "prefill": [513]}, "prefill size 513 is not between 2 and 512", None),
        ({"targets": ["torch"], "ln_x_eps": 0.0}, "ln_x eps 0.0 is not between 0 and 1", "official models use 64e-5"),
        ({"targets": ["torch"], "ln_x_eps": float("nan")}, "ln_x eps nan is not between 0 and 1", "official models"),
    ],
)
def test_a_choice_that_cannot_be_meant_is_refused_with_what_can(
    exports: Exports, tmp_path: Path, arguments: dict[str, Any], message: str, hint: str | None
) -> None:
    with pytest.raises(WrongCall) as refused:
        export(exports.checkpoint("7"), out=tmp_path / "out", **arguments)
    assert refused.value.message == message
    assert (refused.value.hint or "").startswith(hint or "")
    assert not (tmp_path / "out").exists()


def test_prefill_is_refused_where_a_target_has_none(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, file = registry.find("torch")
    monkeypatch.setattr(registry, "find", lambda name: (dataclasses.replace(target, prefill=False), file))
    with pytest.raises(WrongCall, match="target torch has no prefill graphs yet") as refused:
        export(exports.checkpoint("7"), targets=["torch"], prefill=[4], out=tmp_path / "out")
    assert "onnx-cpu" in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": "mlstate"}, "MLState is float16 only, not fp32"),
        ({"names": "rwkv-mobile"}, "three state tensors a layer"),
    ],
)
def test_what_one_target_cannot_do_is_refused_before_another_is_begun(
    exports: Exports, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(WrongCall, match=message):
        export(exports.checkpoint("4"), targets=["torch", "onnx-cpu", "coreml"], options=options, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def lacking(weights: Tensors) -> None:
    del weights["blocks.1.att.r_k"]


def misshapen(weights: Tensors) -> None:
    weights["blocks.1.ffn.key.weight"] = weights["blocks.1.ffn.key.weight"][:, :-1].contiguous()


def turned(weights: Tensors) -> None:
    weights["blocks.1.att.w1"] = weights["blocks.1.att.w1"].t().contiguous()


def another(weights: Tensors) -> None:
    weights["blocks.0.att.x_z"] = torch.zeros(3)


def gap(weights: Tensors) -> None:
    weights["blocks.3.ln1.weight"] = torch.zeros(96)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lacking, r"^blocks\.1\.att\.r_k is missing from this RWKV-7 checkpoint$"),
        (misshapen, r"^blocks\.1\.ffn\.key\.weight has shape \(232, 95\), expected \(232, 96\)$"),
        (turned, r"^blocks\.1\.att\.w1 has shape \(9, 96\), expected \(96, 9\)$"),
        (another, r"^blocks\.0\.att\.x_z is not a tensor of RWKV-7$"),
        (gap, r"^block 2 of 4 is missing$"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_the_tensors_name(
    tmp_path: Path, damage: Callable[[Tensors], None], message: str
) -> None:
    weights = random_weights("7")
    damage(weights)
    with pytest.raises(BadCheckpoint, match=message):
        export(saved(weights, tmp_path / "damaged.pth"), targets=["torch"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["blocks.1.att.value.weight", "emb.weight", "blocks.0.att.k_a"])
@pytest.mark.parametrize("target", ["torch", "onnx-cpu"])
def test_nan_in_a_weight_is_refused_and_leaves_nothing(tmp_path: Path, target: str, name: str) -> None:
    weights = random_weights("7")
    weights[name].view(-1)[[5, 7]] = torch.tensor([torch.nan, torch.inf])
    with pytest.raises(BadCheckpoint) as refused:
        export(saved(weights, tmp_path / "damaged.pth"), targets=[target], out=tmp_path / "out")
    assert refused.value.message == f"{name} holds 1 NaN and 1 Inf of {weights[name].numel()} values"
    assert list((tmp_path / "out").iterdir()) == []


# The tokenizer


def test_the_world_vocabulary_comes_with_the_artifact(tmp_path: Path) -> None:
    weights = random_checkpoint("4", layers=1, width=8, head_size=8, vocab=65536)
    (folder,) = export(saved(weights, tmp_path / "world.pth"), targets=["torch"], out=tmp_path)
    document = manifest.read(folder)
    assert document.tokenizer == manifest.Tokenizer("world", "rwkv_vocab_v20230424.txt")
    assert document.tokenizer.file in {file.path for file in document.files}
    assert open_tokenizer("world", folder).encode("Hello world") == [33155, 40213]
    lines = (folder / document.tokenizer.file).read_text(encoding="utf-8").splitlines()
    assert {"33155 'Hello' 5", "40213 ' world' 6"} <= set(lines)  # the file a phone gets says the same


def test_the_pile_tokenizer_is_taken_from_beside_the_checkpoint_or_said_to_be_absent(tmp_path: Path) -> None:
    path = saved(random_checkpoint("4", layers=1, width=8, head_size=8, vocab=50277), tmp_path / "pile.pth")
    (folder,) = export(path, targets=["torch"], out=tmp_path)
    assert manifest.read(folder).tokenizer == manifest.Tokenizer("none")
    (tmp_path / PILE_FILE).write_text("{}")
    (folder,) = export(path, targets=["torch"], out=tmp_path)
    assert manifest.read(folder).tokenizer == manifest.Tokenizer("pile", PILE_FILE)
    assert (folder / PILE_FILE).read_text() == "{}"


@pytest.mark.parametrize(
    ("graphs", "says"),
    [
        ((Graph(1, "decode.x", "tokens", "int64", "logits"),), r"torch returned no graph of \[16\] tokens"),
        (
            tuple(Graph(n, "lost.x", "tokens", "int64", "logits") for n in (1, 16)),
            r"graph in lost\.x, which it did not",
        ),
    ],
)
def test_a_target_that_did_not_write_what_it_was_asked_for_leaves_nothing(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: tuple[Graph, ...], says: str
) -> None:
    written = Written(graphs, (), Precision("float32", "float32"), {})
    monkeypatch.setattr(pytorch, "export", lambda job, folder: written)
    with pytest.raises(TypeError, match=says):
        export(exports.checkpoint("7"), targets=["torch"], prefill=[16], out=tmp_path)
    assert list(tmp_path.iterdir()) == []
