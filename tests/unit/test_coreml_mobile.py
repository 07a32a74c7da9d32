"""The Core ML folder for rwkv-mobile: what its backend asks a compiled package for by name, and what that computes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools_quiet import coremltools
from small_exports import SIZES, checkpoint, in_chunks, in_torch, stepping

import runtimes
from exporter import export
from runtimes import manifest
from runtimes.backends import mil
from runtimes.contract import TensorSpec
from runtimes.errors import BadArtifact, WrongCall
from runtimes.stacking import apart, parts, together

CHUNK, LAYERS = 2, 2
HALF = 5e-2
HEADS = SIZES["width"] // SIZES["head_size"]
SHIFT = (2, LAYERS, SIZES["width"])
WKV = (LAYERS, HEADS, SIZES["head_size"], SIZES["head_size"])

Ports = dict[str, tuple[str, tuple[int, ...]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Exports of small models, each made once."""
    folder = tmp_path_factory.mktemp("mobile")

    @cache
    def make(version: str, state: str) -> Path:
        path = folder / f"{version}.pth"
        torch.save(checkpoint(version, LAYERS), path)
        return exported(path, folder / state, state=state)

    return make


def exported(
    path: Path, out: Path, *, precision: str = "fp16", prefill: tuple[int, ...] = (CHUNK,), **options: str
) -> Path:
    (folder,) = export(
        path,
        targets=["coreml"],
        precision=precision,
        options={"names": "rwkv-mobile", **options},
        prefill=prefill,
        out=out,
    )
    return folder


def settings(folder: Path) -> dict[str, str]:
    """config.yaml as the backend reads it: a key and a value a line, parted by the first colon."""
    lines = (folder / "config.yaml").read_text().splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def package(folder: Path) -> Path:
    """Where the compiler takes the first piece from whose name the backend puts together."""
    found = settings(folder)
    return folder / f"{found['basename']}_chunk1of{found['num_chunks']}.mlpackage"


def functions(folder: Path) -> dict[str, tuple[Ports, Ports, Ports]]:
    """Inputs, outputs and states of each function, as the package describes them."""
    description = coremltools.utils.load_spec(str(package(folder))).description
    assert description.defaultFunctionName == "decode"
    return {each.name: (ports(each.input), ports(each.output), ports(each.state)) for each in description.functions}


def ports(features: Any) -> Ports:
    found = {}
    for feature in features:
        held = feature.type.WhichOneof("Type") == "stateType"
        array = feature.type.stateType.arrayType if held else feature.type.multiArrayType
        found[feature.name] = array.ArrayDataType.Name(array.dataType), tuple(array.shape)
    return found


def half(*shape: int) -> tuple[str, tuple[int, ...]]:
    return "FLOAT16", shape


def test_state_as_tensors_is_what_the_backend_feeds_back(made: Any) -> None:
    folder = made("7", "explicit")
    assert settings(folder) == {"basename": "model", "num_chunks": "1", "state_mode": "tensor"}
    assert functions(folder) == {
        name: (
            {"in0": ("INT32", (1, size)), "state_tokenshift_in": half(*SHIFT), "state_wkv_in": half(*WKV)},
            {"out0": half(1, 1, SIZES["vocab"]), "state_tokenshift_out": half(*SHIFT), "state_wkv_out": half(*WKV)},
            {},
        )
        for name, size in (("decode", 1), ("prefill", CHUNK))
    }


def test_state_that_core_ml_keeps_has_the_two_names_that_the_backend_asks_for(made: Any) -> None:
    folder = made("6", "mlstate")
    assert settings(folder)["state_mode"] == "coreml"
    assert functions(folder) == {
        name: (
            {"in0": ("INT32", (1, size))},
            {"out0": half(1, 1, SIZES["vocab"])},
            {"state_tokenshift": half(*SHIFT), "state_wkv": half(*WKV)},
        )
        for name, size in (("decode", 1), ("prefill", CHUNK))
    }


@pytest.mark.parametrize(("version", "state"), [("7", "explicit"), ("6", "mlstate")])
def test_it_computes_what_the_checkpoint_does(made: Any, version: str, state: str) -> None:
    folder = made(version, state)
    session, wanted = runtimes.open_session(folder), in_torch(folder)
    assert stepping(session, wanted) < HALF
    assert in_chunks(session, wanted, (CHUNK, 1, CHUNK + 1)) < HALF


def test_the_functions_share_their_weights(made: Any) -> None:
    folder = made("7", "explicit")
    parameters = manifest.read(folder).model.parameters
    (weights,) = package(folder).rglob("weight.bin")
    assert weights.stat().st_size < 1.5 * 2 * parameters


def test_a_readme_names_the_one_command_that_is_left(made: Any) -> None:
    folder = made("7", "explicit")
    assert f"\nxcrun coremlcompiler compile {package(folder).name} .\n" in (folder / "README.md").read_text()


def test_a_manifest_of_other_shapes_is_refused(made: Any) -> None:
    artifact = manifest.open_artifact(made("7", "explicit"))
    target = replace(artifact.manifest.target, options={})
    with pytest.raises(BadArtifact, match="input in0"):
        mil.open_session(replace(artifact, manifest=replace(artifact.manifest, target=target)), "cpu")


def test_shifts_of_all_layers_and_both_kinds_are_one_tensor() -> None:
    spec = TensorSpec("blocks.*.att.shift, blocks.*.ffn.shift", (2, 3, 5), "float16", ("kind", "layer", "channel"), 0.0)
    array = np.arange(30, dtype=np.float16).reshape(2, 3, 5)
    names = [f"blocks.{layer}.{kind}.shift" for kind in ("att", "ffn") for layer in range(3)]
    assert [(part.name, part.shape, part.axes) for part in parts(spec)] == [
        (name, (1, 5), ("batch", "channel")) for name in names
    ]
    found = apart(spec, array)
    assert list(found) == names
    np.testing.assert_array_equal(found["blocks.1.ffn.shift"], array[1, 1:2])
    np.testing.assert_array_equal(together(spec, found), array)


@pytest.mark.parametrize(
    ("version", "precision", "options", "prefill", "message"),
    [
        ("4", "fp16", {}, (4,), "rwkv-mobile names need three state tensors a layer, RWKV-4 has others"),
        ("7", "fp32", {}, (4,), "rwkv-mobile reads float16 logits, which fp32 does not give"),
        ("7", "mixed", {}, (4,), "rwkv-mobile reads float16 logits, which mixed does not give"),
        ("7", "fp16", {"ios": "17"}, (4,), "two functions of one package, which need iOS 18, not 17"),
        ("7", "fp16", {"chunk": "0.9"}, (4,), "with rwkv-mobile's names the step is one package"),
        ("7", "fp16", {}, (4, 8), "rwkv-mobile loads one function for prompts, not 2"),
    ],
)
def test_what_it_cannot_load_is_refused(
    tmp_path: Path, version: str, precision: str, options: dict[str, str], prefill: tuple[int, ...], message: str
) -> None:
    torch.save(checkpoint(version, 1), tmp_path / "model.pth")
    with pytest.raises(WrongCall, match=message) as refused:
        exported(tmp_path / "model.pth", tmp_path / "out", precision=precision, prefill=prefill, **options)
    assert refused.value.hint
    assert not list((tmp_path / "out").glob("*"))
