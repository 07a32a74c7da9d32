"""The Core ML folder for rwkv-mobile: what its backend asks a compiled package for by name, and what that computes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import fake_core_ml
import numpy as np
import pytest
import torch
from coremltools_quiet import coremltools
from small_exports import SIZES, TOKENS, checkpoint, in_chunks, in_torch, largest, stepping

import runtimes
from exporter import export
from exporter.passes import mil_pieces
from runtimes import manifest
from runtimes.backends import coreml, mil
from runtimes.contract import TensorSpec
from runtimes.errors import BadArtifact, WrongCall
from runtimes.stacking import apart, parts, together
from rwkv_export.main import run
from tests.oracle import trace_of

pytestmark = pytest.mark.slow

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
    def make(version: str, state: str, *, cut: bool = False) -> Path:
        path = folder / f"{version}.pth"
        torch.save(checkpoint(version, LAYERS), path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mil_pieces, "AUTO", 1e-9 if cut else 1.0)  # GB: each layer by itself, or all together
            return exported(path, folder / f"{state}-{cut}", state=state)

    return make


def exported(
    path: Path, out: Path, *, precision: str = "fp16", sizes: tuple[int, ...] = (CHUNK,), **options: str
) -> Path:
    (folder,) = export(
        path,
        targets=["coreml"],
        precision=precision,
        options={"names": "rwkv-mobile", **options},
        prefill=sizes,
        out=out,
    )
    return folder


def settings(folder: Path) -> dict[str, str]:
    """config.yaml as the backend reads it: a key and a value a line, parted by the first colon."""
    lines = (folder / "config.yaml").read_text().splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def package(folder: Path, number: int = 1) -> Path:
    """Where the compiler takes the piece from whose name the backend puts together."""
    found = settings(folder)
    return folder / f"{found['basename']}_chunk{number}of{found['num_chunks']}.mlpackage"


def functions(folder: Path, number: int = 1) -> dict[str, tuple[Ports, Ports, Ports]]:
    """Inputs, outputs and states of each function, as the package describes them."""
    description = coremltools.utils.load_spec(str(package(folder, number))).description
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


def test_matrices_alone_can_be_kept_and_a_model_be_cut(made: Any) -> None:
    folder = made("7", "mlstate-wkv", cut=True)
    assert settings(folder) == {"basename": "model", "num_chunks": "2", "state_mode": "wkv-coreml"}
    shift, wkv = half(2, 1, *SHIFT[2:]), {"state_wkv": half(1, *WKV[1:])}
    for name, size in (("decode", 1), ("prefill", CHUNK)):
        between = half(1, size, SIZES["width"])
        assert functions(folder, 1)[name] == (
            {"in0": ("INT32", (1, size)), "state_tokenshift_in": shift},
            {"out0": between, "v_first_out": between, "state_tokenshift_out": shift},
            wkv,
        )
        assert functions(folder, 2)[name] == (
            {"in0": between, "v_first_in": between, "state_tokenshift_in": shift},
            {"out0": half(1, 1, SIZES["vocab"]), "state_tokenshift_out": shift},
            wkv,
        )


@pytest.mark.parametrize(
    ("version", "state", "cut"),
    [("7", "explicit", False), ("6", "mlstate", False), ("7", "mlstate-wkv", True)],
)
def test_it_computes_what_the_checkpoint_does(made: Any, version: str, state: str, *, cut: bool) -> None:
    folder = made(version, state, cut=cut)
    session, wanted = runtimes.open_session(folder), in_torch(folder)
    assert stepping(session, wanted) < HALF
    assert in_chunks(session, wanted, (CHUNK, 1, CHUNK + 1)) < HALF


def test_the_functions_share_their_weights(made: Any) -> None:
    folder = made("7", "explicit")
    parameters = manifest.read(folder).model.parameters
    (weights,) = package(folder).rglob("weight.bin")
    assert weights.stat().st_size < 1.5 * 2 * parameters


@pytest.mark.parametrize(("state", "numbers"), [("explicit", [1]), ("mlstate-wkv", [1, 2])])
def test_a_readme_names_the_commands_that_are_left(made: Any, state: str, numbers: list[int]) -> None:
    folder = made("7", state, cut=len(numbers) > 1)
    for number in numbers:
        assert (
            f"\nxcrun coremlcompiler compile {package(folder, number).name} .\n" in (folder / "README.md").read_text()
        )


@pytest.mark.parametrize(("version", "state", "cut"), [("6", "mlstate", False), ("7", "mlstate-wkv", True)])
def test_core_ml_is_given_what_the_interpreter_is(
    made: Any, monkeypatch: pytest.MonkeyPatch, version: str, state: str, *, cut: bool
) -> None:
    artifact = manifest.open_artifact(made(version, state, cut=cut))
    wanted = trace_of(mil.open_session(artifact, "cpu"), TOKENS)
    fake_core_ml.install(monkeypatch)
    assert largest(trace_of(coreml.open_session(artifact, "cpu"), TOKENS), wanted) == 0


def test_packages_in_another_order_are_refused(made: Any) -> None:
    artifact = manifest.open_artifact(made("7", "mlstate-wkv", cut=True))
    graphs = [replace(each, file=each.then[0], then=(each.file,)) for each in artifact.manifest.graphs]
    with pytest.raises(BadArtifact, match="in0"):
        mil.open_session(replace(artifact, manifest=replace(artifact.manifest, graphs=tuple(graphs))), "cpu")


@pytest.mark.parametrize(
    ("version", "message"), [("6", "every package, which RWKV-6 has none of"), ("7a", "looks up tables in every layer")]
)
def test_models_that_cannot_be_handed_on_are_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, message: str
) -> None:
    monkeypatch.setattr(mil_pieces, "AUTO", 1e-9)
    torch.save(checkpoint(version, LAYERS), tmp_path / "model.pth")
    with pytest.raises(WrongCall, match=message):
        exported(tmp_path / "model.pth", tmp_path / "out")


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
    later = TensorSpec("blocks.8+*.att.shift", (3, 5), "float16", ("layer", "channel"), 0.0)
    assert [part.name for part in parts(later)] == [f"blocks.{layer}.att.shift" for layer in (8, 9, 10)]
    assert list(apart(later, array[0])) == [part.name for part in parts(later)]


@pytest.mark.parametrize(
    ("version", "precision", "options", "sizes", "message"),
    [
        ("4", "fp16", {}, (4,), "rwkv-mobile names need three state tensors a layer, RWKV-4 has others"),
        ("7", "fp32", {}, (4,), "rwkv-mobile reads float16 logits, which fp32 does not give"),
        ("7", "mixed", {}, (4,), "rwkv-mobile reads float16 logits, which mixed does not give"),
        ("7", "fp16", {"ios": "17"}, (4,), "two functions of one package, which need iOS 18, not 17"),
        ("7", "fp16", {"prefill": "masked"}, (4,), "rwkv-mobile gives no mask to a function for prompts"),
        ("7", "fp16", {}, (4, 8), "rwkv-mobile loads one function for prompts, not 2"),
    ],
)
def test_what_it_cannot_load_is_refused(
    tmp_path: Path, version: str, precision: str, options: dict[str, str], sizes: tuple[int, ...], message: str
) -> None:
    torch.save(checkpoint(version, 1), tmp_path / "model.pth")
    with pytest.raises(WrongCall, match=message) as refused:
        exported(tmp_path / "model.pth", tmp_path / "out", precision=precision, sizes=sizes, **options)
    assert refused.value.hint
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("word", ["--names", "--layout"])
def test_the_command_line_has_two_words_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str) -> None:
    torch.save(checkpoint("7", 1), tmp_path / "model.pth")
    command = ["export", str(tmp_path / "model.pth"), "-t", "coreml", "-p", "fp32", word, "rwkv-mobile"]
    assert run([*command, "-o", str(tmp_path / "out")]) == 2
    assert "rwkv-mobile reads float16 logits" in capsys.readouterr().err
