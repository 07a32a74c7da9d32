"""Core ML packages of several functions and of compressed weights: what lies in the files, and what it computes."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools_quiet import coremltools
from small_exports import TOKENS, checkpoint, in_chunks, in_torch, stepping

import runtimes
from exporter import export
from exporter.contract import Spelling
from exporter.mil import PACKAGE
from exporter.model import open_model
from exporter.passes import mil_pieces
from exporter.passes.mil_compress import SCHEMES, SMALL, Matrix, compress, kept
from exporter.passes.mil_palette import palette
from exporter.quiet import quiet
from runtimes import manifest
from runtimes.errors import BadArtifact, WrongCall
from tests.oracle import trace_of

pytestmark = pytest.mark.slow

CHUNK = 4
HALF = 5e-2
WEIGHTS = f"{PACKAGE}/Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Exports of the same small model, each made once."""
    folder = tmp_path_factory.mktemp("coreml")
    torch.save(checkpoint("7", 1), folder / "7.pth")

    @cache
    def make(precision: str, ios: str = "18", state: str = "explicit", prefill: tuple[int, ...] = (CHUNK,)) -> Path:
        options = {"ios": ios, "state": state}
        out = folder / f"{precision}-{ios}-{state}-{len(prefill)}"
        (artifact,) = export(
            folder / "7.pth", targets=["coreml"], precision=precision, options=options, prefill=prefill, out=out
        )
        return artifact

    return make


def operations(folder: Path, function: str | None = None) -> list[Any]:
    model = coremltools.utils.load_spec(str(folder / PACKAGE)).mlProgram
    (block,) = model.functions[function or "main"].block_specializations.values()
    return list(block.operations)


def test_functions_of_a_package_share_their_weights_and_agree(made: Any) -> None:
    folder, alone = made("fp16"), made("fp16", prefill=())
    graphs = manifest.read(folder).graphs
    assert [(graph.tokens, graph.file, graph.function) for graph in graphs] == [
        (1, PACKAGE, "decode"),
        (CHUNK, PACKAGE, f"prefill{CHUNK}"),
    ]
    once = (alone / WEIGHTS).stat().st_size
    assert (folder / WEIGHTS).stat().st_size < 1.1 * once
    session, wanted = runtimes.open_session(folder), in_torch(folder)
    assert stepping(session, wanted) < HALF
    assert in_chunks(session, wanted, (CHUNK, 1, CHUNK + 1)) < HALF


def test_before_ios_18_each_function_is_a_package(made: Any) -> None:
    folder = made("fp32", ios="17")
    graphs = manifest.read(folder).graphs
    assert [(graph.file, graph.function) for graph in graphs] == [(PACKAGE, None), (f"prefill{CHUNK}.mlpackage", None)]
    assert in_chunks(runtimes.open_session(folder), in_torch(folder), (CHUNK, CHUNK, 2)) < 1e-5


def test_a_state_that_core_ml_keeps_is_shared_by_functions(made: Any) -> None:
    folder = made("fp16", state="mlstate")
    model = coremltools.utils.load_spec(str(folder / PACKAGE)).description
    names = {tensor.input for tensor in manifest.read(folder).state}
    assert {function.name: {port.name for port in function.state} for function in model.functions} == {
        "decode": names,
        f"prefill{CHUNK}": names,
    }
    assert in_chunks(runtimes.open_session(folder), in_torch(folder), (1, CHUNK, CHUNK)) < HALF


def test_a_function_of_another_name_is_refused(made: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("fp16"), tmp_path / "copy"))
    document = manifest.read(folder)
    last = replace(document.graphs[-1], function="prefill5")
    manifest.write(replace(document, graphs=(*document.graphs[:-1], last)), folder)
    with pytest.raises(BadArtifact, match="no function 'prefill5'"):
        runtimes.open_session(folder)


def test_a_step_that_is_cut_into_packages_computes_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(checkpoint("7", 3), tmp_path / "7.pth")
    monkeypatch.setattr(mil_pieces, "GIGABYTE", 2e4)  # so that a layer of 5000 parameters is most of a gigabyte
    (folder,) = export(tmp_path / "7.pth", targets=["coreml"], options={"chunk": "0.9"}, out=tmp_path)
    files = ["model-1of3.mlpackage", "model-2of3.mlpackage", "model-3of3.mlpackage"]
    (graph,) = manifest.read(folder).graphs
    assert [graph.file, *graph.then] == files
    assert stepping(runtimes.open_session(folder), in_torch(folder)) < 1e-5


# Precisions


def test_mixed_keeps_what_has_heads_in_float32(made: Any) -> None:
    folder = made("mixed", prefill=())
    assert {tensor.dtype for tensor in manifest.read(folder).state} == {"float32"}
    halves: Counter[tuple[str, bool, bool]] = Counter()
    for operation in operations(folder):
        kind = operation.outputs[0].type.tensorType
        if operation.type in ("exp", "layer_norm", "linear") or (operation.type == "matmul" and kind.rank > 2):
            halves[operation.type, kind.rank > 2 or operation.type == "exp", kind.dataType == FLOAT16] += 1
    assert {half for (_, heads, half) in halves if heads} == {False}
    assert {half for (name, _, half) in halves if name == "linear"} == {True}
    wanted = in_torch(folder)
    assert stepping(runtimes.open_session(folder), wanted) < stepping(runtimes.open_session(made("fp16")), wanted)


FLOAT16 = coremltools.proto.MIL_pb2.FLOAT16


class Toy(torch.nn.Module):
    """A lookup, a projection, an adapter and a head, with the names that the step's have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb = torch.nn.Parameter(torch.randn(48, 64))
        self.key = torch.nn.Linear(64, 48, bias=False)
        self.value = torch.nn.Linear(48, 64, bias=False)
        self.down = torch.nn.Linear(64, 32, bias=False)
        self.up = torch.nn.Linear(32, 64, bias=False)
        self.head = torch.nn.Linear(64, 48, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.embedding(tokens, self.emb)
        logits: torch.Tensor = self.head(self.value(torch.relu(self.key(x))) + self.up(self.down(x)))
        return logits


@cache
def converted(ios: str) -> Any:
    with quiet():
        program = torch.export.export(Toy().eval(), (torch.zeros(1, dtype=torch.int32),)).run_decompositions({})
        return coremltools.convert(
            program,
            inputs=[coremltools.TensorType(shape=(1,), dtype=np.int32)],
            minimum_deployment_target=getattr(coremltools.target, f"iOS{ios}"),
            skip_model_load=True,
        )


def stored(model: Any) -> dict[str, tuple[str, str]]:
    """By the first part of a weight's name, the operation that makes it and the type of its elements."""
    (block,) = model.get_spec().mlProgram.functions["main"].block_specializations.values()
    found = {}
    for operation in block.operations:
        if operation.type.startswith("constexpr_"):
            given = {name: operation.inputs[name].arguments[0].value for name in operation.inputs}
            given |= {name: operation.attributes[name] for name in operation.attributes}
            data = next(given[name] for name in ("data", "indices", "quantized_data") if name in given)
            name = operation.outputs[0].name.removeprefix("p_").split("_")[0]
            kind = coremltools.proto.MIL_pb2.DataType.Name(data.type.tensorType.dataType)
            found[name] = operation.type.removeprefix("constexpr_"), kind
    return found


@pytest.mark.parametrize(
    ("version", "adapters", "uneven"), [("4", False, True), ("6", True, True), ("7", True, True), ("7a", True, True)]
)
def test_what_is_said_to_be_kept_is_there(tmp_path: Path, version: str, *, adapters: bool, uneven: bool) -> None:
    torch.save(checkpoint(version, 1), tmp_path / "model.pth")  # 40 numbers into ffn.value, which 32 does not divide
    step = open_model(tmp_path / "model.pth").build(Spelling())
    names = {scheme: {entry.tensors for entry in kept(SCHEMES[scheme], step, wide="float16")} for scheme in SCHEMES}
    assert ("low-rank adapters" in names["lut4"]) == ("low-rank adapters" in names["int4"]) == adapters
    assert ("projections of inputs that 32 does not divide" in names["int4"]) == uneven
    assert "projections of inputs that 32 does not divide" not in names["lut4"]
    assert len(names["int8"]) == len(names["w8a8"]) == 1


@pytest.mark.parametrize("name", ["p_weights_p_blocks_0_att_shift_up_3_weight_to_fp16", "p_blocks_1_att_w_up_weight"])
def test_adapters_are_told_by_their_names(name: str) -> None:
    assert Matrix(name, (32, 32), table=False).reason(SCHEMES["lut4"]) == SMALL


INT8 = ("blockwise_shift_scale", "INT8")
PALETTE = "lut_to_dense"


@pytest.mark.parametrize(
    ("name", "own", "head"),
    [
        ("int8", INT8, INT8),
        ("int4", ("blockwise_shift_scale", "INT4"), INT8),
        ("lut8", (PALETTE, "UINT8"), (PALETTE, "UINT8")),
        ("lut6", (PALETTE, "UINT6"), INT8),
        ("lut4", (PALETTE, "UINT4"), INT8),
    ],
)
def test_projections_are_stored_as_asked_and_the_rest_in_8_bits(
    name: str, own: tuple[str, str], head: tuple[str, str]
) -> None:
    with quiet():
        found = stored(compress(converted("18"), SCHEMES[name], "18"))
    uneven = INT8 if name == "int4" else own  # 48 inputs are no multiple of 32
    assert found == {"emb": INT8, "key": own, "value": uneven, "down": INT8, "up": INT8, "head": head}


def test_ios_16_has_one_palette_a_matrix() -> None:
    with quiet():
        found = stored(compress(converted("16"), SCHEMES["lut4"], "16"))
    assert found["key"][0] == found["value"][0] == PALETTE
    assert {found[name][0] for name in ("emb", "head", "up", "down")} == {"affine_dequantize"}


def test_compressed_functions_share_their_weights_and_compute_the_same(made: Any) -> None:
    folder = made("lut4")
    session = runtimes.open_session(folder)
    assert in_chunks(session, trace_of(session, TOKENS), (CHUNK, CHUNK, 2)) < HALF
    assert (folder / WEIGHTS).stat().st_size < 0.75 * (made("fp16") / WEIGHTS).stat().st_size
    assert {entry.tensors for entry in manifest.read(folder).precision.kept} == {
        "token ids",
        "head",
        "low-rank adapters",
        "embedding and other tables",
        "vectors, and matrices that no product or lookup takes",
    }


@pytest.mark.parametrize(("bits", "room"), [(4, 1.05), (6, 1.15), (8, 1.4)])
def test_palettes_are_nearly_as_good_as_the_best(bits: int, room: float) -> None:
    from coremltools._deps import kmeans1d  # exact, and slow

    values = np.random.default_rng(0).normal(size=(16, 160)).astype(np.float16)
    centres, indices = palette(values, bits)
    assert (centres.shape, str(centres.dtype), str(indices.dtype)) == ((2**bits,), "float16", "uint8")
    flat = values.reshape(-1).astype(np.float64)
    error = np.square(flat - centres.astype(np.float64)[indices]).mean()
    assert np.isclose(error, np.square(flat[:, None] - centres.astype(np.float64)).min(1).mean())  # each its nearest
    best = kmeans1d.cluster(flat, 2**bits)
    assert error <= room * np.square(flat - np.array(best.centroids)[best.clusters]).mean()


def test_a_palette_of_few_values_has_them_all() -> None:
    values = np.array([[0.5, -1.0, 0.5], [0.0, 0.0, 3.0]], np.float32)
    centres, indices = palette(values, 4)
    np.testing.assert_allclose(centres[indices], values.reshape(-1), atol=1e-6)


@pytest.mark.parametrize(
    ("version", "precision", "options", "message"),
    [
        ("7", "int4", {"ios": "17"}, "4-bit integers need iOS 18, not 17"),
        ("7", "mixed", {"state": "mlstate"}, "MLState is float16 only, not mixed"),
        ("4", "mixed", {}, "mixed keeps arithmetic per head in float32, and RWKV-4 has none"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, version: str, precision: str, options: dict[str, str], message: str
) -> None:
    torch.save(checkpoint(version, 1), tmp_path / "model.pth")
    with pytest.raises(WrongCall, match=message):
        export(tmp_path / "model.pth", targets=["coreml"], precision=precision, options=options, out=tmp_path / "out")
