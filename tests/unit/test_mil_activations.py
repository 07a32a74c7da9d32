"""Activations of 8 bits in ML Programs: where the pairs of operations are, in which ranges, and what they compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_exports import checkpoint

from exporter import calibration, export
from exporter.contract import Spelling
from exporter.model import open_model
from exporter.progress import silent
from exporter.synth import synth
from exporter.vocabulary import encoded
from runtimes import manifest
from runtimes.errors import WrongCall
from runtimes.mil.package import Package
from runtimes.mil.program import Inline, Operation, Ref
from validation import validate
from validation.outcome import Outcome

pytestmark = pytest.mark.slow

PROJECTIONS = {"att_receptance", "att_key", "att_value", "att_output", "ffn_key", "ffn_value"}
TOKENS = 128


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synth("7", layers=1, width=64, vocab=257, out=tmp_path_factory.mktemp("model") / "7.pth")


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "TOKENS", TOKENS)
        (folder,) = export(
            model,
            targets=["coreml-ane"],
            precision="w8a8",
            prefill=(4,),
            options={"prefill": "masked"},
            out=tmp_path_factory.mktemp("out"),
        )
    return folder


def operations(folder: Path, function: str) -> list[Operation]:
    return list(Package(folder / "model.mlpackage").function(function).operations)


def taken(each: Operation, parameter: str = "x") -> str:
    (value,) = each.arguments[parameter]
    assert isinstance(value, Ref)
    return value.name


@pytest.mark.parametrize("function", ["decode", "prefill4"])
def test_all_that_projections_take_is_rounded_and_nothing_else(made: Path, function: str) -> None:
    found = operations(made, function)
    made_by = {name: each for each in found for name in each.outputs}
    convolutions = [each for each in found if each.kind == "conv"]
    rounded = [each for each in convolutions if made_by[taken(each)].kind == "dequantize"]
    assert len(rounded) == len(PROJECTIONS) < len(convolutions)
    assert len([each for each in found if each.kind == "quantize"]) == len(rounded)
    assert {made_by[taken(made_by[taken(each)], "input")].kind for each in rounded} == {"quantize"}
    assert len([each for each in found if each.kind == "dequantize"]) == len(rounded)


def test_ranges_are_those_of_the_text(model: Path, made: Path) -> None:
    opened = open_model(model)
    step, tokens = opened.build(Spelling()), calibration.passage(lambda text: encoded(opened, text))[:TOKENS]
    wanted = calibration.ranges_of(step, opened.spec, tokens, silent)
    widths = sorted(max(high - low, 1e-3) for name, (low, high) in wanted.items() if plain(name) in PROJECTIONS)
    found = []
    for each in operations(made, "decode"):
        if each.kind == "quantize":
            (scale,) = each.arguments["scale"]
            assert isinstance(scale, Inline) and isinstance(scale.data, bytes)
            found.append(float(np.frombuffer(scale.data, scale.type.dtype)[0]) * 255)
    np.testing.assert_allclose(sorted(found), widths, rtol=5e-3)


def plain(name: str) -> str:
    """ "blocks.1.att.key.weight" as "att_key"."""
    return "_".join(name.split(".")[2:-1])


def test_it_passes_as_int8_does_and_says_what_stays(made: Path, model: Path) -> None:
    (row,) = validate([made], checkpoint=model, steps=16, quality_tokens=16).parity
    assert row.outcome is Outcome.PASS, row.reasons
    document = manifest.read(made)
    assert "what the head and low-rank adapters take" in {entry.tensors for entry in document.precision.kept}


@pytest.mark.parametrize(
    ("target", "vocab", "options", "message"),
    [
        ("coreml-ane", 257, {"ios": "16"}, "activations of 8 bits need iOS 17, not 16"),
        ("coreml", 33, {}, "no known tokenizer has 33 tokens to read a text with"),
        ("coreml", 257, {"names": "rwkv-mobile"}, "with rwkv-mobile's names activations stay float16"),
    ],
)
def test_what_has_no_ranges_is_refused(
    tmp_path: Path, model: Path, target: str, vocab: int, options: dict[str, str], message: str
) -> None:
    path = model
    if vocab == 33:
        torch.save(checkpoint("7", 1), path := tmp_path / "7.pth")
    with pytest.raises(WrongCall, match=message):
        export(path, targets=[target], precision="w8a8", options=options, out=tmp_path / "out")
