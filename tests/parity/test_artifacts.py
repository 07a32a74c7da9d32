"""Exported artifacts against their checkpoints, through the same door as `rwkv-export validate`, and what must fail."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import coremltools
import numpy as np
import onnx
import onnxruntime
import pytest

import runtimes
from exporter import export
from runtimes import manifest
from runtimes.errors import BadArtifact, WrongCall
from tests.conftest import AWKWARD, Exports
from tests.models import VERSIONS, random_checkpoint
from tests.oracle import RUNS, Oracle, errors, trace_of
from validation import validate
from validation.outcome import Outcome, Parity

pytestmark = pytest.mark.slow

BOUND = 5e-5  # of a logit, fp32 against fp32
PACKAGE_BOUND = 1e-5  # of a tensor's largest value, against the `rwkv` package; test_step_modules.py keeps the same
TARGETS = ("onnx-cpu", "coreml", "executorch-xnnpack")
PLACES = {
    "onnx-cpu": "ort:cpu",
    "coreml": "mil:cpu",
    "executorch-xnnpack": "pte:cpu",
    "executorch-portable": "pte:cpu",
    "torch": "eager:cpu",
}
INT32, FLOAT = "tensor(int32)", "tensor(float)"  # onnxruntime's words
PREFILL = {"executorch-xnnpack": (32,)}  # two blocks: its prefill is a method of its own
TOKENS = np.random.default_rng(5).integers(0, AWKWARD["vocab"], 24).tolist()


def validated(folder: Path) -> Parity:
    """The only row of a validation over 64 steps."""
    (row,) = validate([folder], steps=64).parity
    return row


def passed(folder: Path) -> Parity:
    """As `validated`, asserting what every right artifact has."""
    row, document = validated(folder), manifest.read(folder)
    assert row.outcome is Outcome.PASS, row.reasons
    assert (row.steps, len(row.free.max_abs), len(row.local.max_abs)) == (64, 64, 64)
    assert row.identity.requested == row.identity.observed == PLACES[document.target.name]
    assert sum(row.identity.nodes.values()) > 0 or document.target.name == "torch"
    assert set(row.free.state_rel) == {tensor.name for tensor in document.state}
    assert set(row.prefill) == {"1", "uneven"} | {str(graph.tokens) for graph in document.graphs if graph.tokens > 1}
    return row


def exact(folder: Path) -> Parity:
    """As `passed`, at fp32's bounds whatever row of the tolerances the artifact names."""
    row = passed(folder)
    assert max(row.free.worst, row.local.worst) <= BOUND
    assert max(row.prefill.values()) <= BOUND
    return row


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_passes_on_every_main_target(exports: Exports, version: str, target: str) -> None:
    exact(exports(version, target, prefill=PREFILL.get(target, ())))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("version", RUNS)
def test_logits_and_states_agree_with_the_rwkv_package(exports: Exports, version: str, target: str) -> None:
    folder = exports(version, target, prefill=PREFILL.get(target, ()))
    got = trace_of(runtimes.open_session(folder), TOKENS)
    wanted = Oracle(random_checkpoint(version, **AWKWARD, seed=3), version).trace(TOKENS)
    found = errors(got, wanted)
    assert max(found.values()) < PACKAGE_BOUND, found


@pytest.mark.parametrize("version", VERSIONS)
def test_xnnpack_takes_each_method_as_one_delegate_around_the_tables(exports: Exports, version: str) -> None:
    folder = exports(version, "executorch-xnnpack", prefill=PREFILL["executorch-xnnpack"])
    tables = 3 if version == "7a" else 1  # 7a has one more a layer
    graphs = manifest.read(folder).graphs
    assert [(graph.function, graph.tokens) for graph in graphs] == [("decode", 1), ("prefill32", 32)]
    for graph in graphs:
        assert graph.coverage is not None
        assert graph.coverage.delegates == {"XnnpackBackend": 1}
        assert graph.coverage.outside == {"aten.embedding": tables}
        assert graph.coverage.macs_outside == 0 < graph.coverage.macs_inside
    nodes = runtimes.open_session(folder).placement().nodes
    assert nodes == {"XnnpackBackend": 1, "aten::embedding": tables}


def test_portable_kernels_pass(exports: Exports) -> None:
    row = exact(exports("7", "executorch-portable"))
    assert "XnnpackBackend" not in row.identity.nodes


@pytest.mark.parametrize("version", ["4", "7a"])
def test_torch_archive_with_a_prefill_graph_passes(exports: Exports, version: str) -> None:
    folder = exports(version, "torch", prefill=(5,))
    assert {graph.file for graph in manifest.read(folder).graphs} == {"decode.pt2", "prefill5.pt2"}
    exact(folder)


@pytest.mark.parametrize(("version", "sizes"), [("7", (8, 3)), ("6", (3,))])
def test_onnx_prefill_graphs_share_one_data_file(exports: Exports, version: str, sizes: tuple[int, ...]) -> None:
    folder = exports(version, "onnx-cpu", prefill=sizes, options={"graphs": "each"})
    assert [graph.tokens for graph in manifest.read(folder).graphs] == [1, *sorted(sizes)]
    bytes_of = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert [name for name in bytes_of if name.endswith(".data")] == ["model.onnx.data"]
    for size in sizes:
        name = f"prefill{size}.onnx"
        assert bytes_of[name] < bytes_of["model.onnx.data"] / 3
        stored = onnx.load(folder / name, load_external_data=False).graph.initializer
        weights = [tensor for tensor in stored if tensor.name.startswith(("blocks.", "emb", "head"))]
        assert max(len(tensor.raw_data) for tensor in weights) < 1024
        assert max(len(tensor.raw_data) for tensor in stored) <= 4096  # masks of a block, 32 x 32
    exact(folder)


@pytest.mark.parametrize(("version", "sizes"), [("7", (3,)), ("7a", ())])
def test_onnx_with_halved_weights_passes_at_half_the_size(
    exports: Exports, version: str, sizes: tuple[int, ...]
) -> None:
    half, whole = exports(version, "onnx-cpu", precision="fp16", prefill=sizes), exports(version, "onnx-cpu")
    row = passed(half)
    assert row.bound.name == "fp16-weights"
    assert row.free.worst > BOUND  # weights were really rounded
    bytes_of = [(folder / "model.onnx.data").stat().st_size for folder in (half, whole)]
    assert bytes_of[0] < 0.6 * bytes_of[1]


@pytest.mark.parametrize(("version", "sizes"), [("5.2", ()), ("7", (2,))])
def test_rwkv_mobile_names_and_shapes_are_exactly_those_it_loads(
    exports: Exports, version: str, sizes: tuple[int, ...]
) -> None:
    folder = exports(version, "onnx-cpu", options={"names": "rwkv-mobile"}, prefill=sizes)
    width, size, vocab = AWKWARD["width"], AWKWARD["head_size"], AWKWARD["vocab"]
    shift, matrix = [1, 1, width], [1, width // size, size, size]
    shapes = {f"state{i}": matrix if i % 3 == 1 else shift for i in range(3 * AWKWARD["layers"])}
    for tokens in (1, *sizes):
        name = "decode.onnx" if tokens == 1 else f"prefill{tokens}.onnx"
        session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        taken = [("in", INT32, [1, tokens]), *((f"{state}_in", FLOAT, shape) for state, shape in shapes.items())]
        given = [("out", FLOAT, [1, 1, vocab]), *((f"{state}_out", FLOAT, shape) for state, shape in shapes.items())]
        assert [(port.name, port.type, port.shape) for port in session.get_inputs()] == taken
        assert [(port.name, port.type, port.shape) for port in session.get_outputs()] == given
    exact(folder)


def test_rwkv_mobile_names_are_refused_for_version_4(exports: Exports, tmp_path: Path) -> None:
    with pytest.raises(WrongCall, match=r"three state tensors a layer, RWKV-4 has others"):
        export(exports.checkpoint("4"), targets=["onnx-cpu"], options={"names": "rwkv-mobile"}, out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("version", "opset"), [("4", "20"), ("6", "21"), ("7", "23")])
def test_onnx_opsets_are_as_asked_for(exports: Exports, version: str, opset: str) -> None:
    folder = exports(version, "onnx-cpu", options={"opset": opset})
    model = onnx.load(folder / "decode.onnx", load_external_data=False)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == int(opset)
    exact(folder)


@pytest.mark.parametrize("version", ["4", "7"])
def test_core_ml_in_half_precision_passes(exports: Exports, version: str) -> None:
    row = passed(exports(version, "coreml", precision="fp16"))
    assert row.bound.name == "fp16"
    assert row.free.worst > BOUND  # it was really rounded


@pytest.mark.parametrize(("ios", "specification"), [("16", 7), ("17", 8), ("18", 9)])
def test_core_ml_supports_the_oldest_ios_asked_for(exports: Exports, ios: str, specification: int) -> None:
    folder = exports("7", "coreml", options={"ios": ios})
    assert coremltools.utils.load_spec(str(folder / "model.mlpackage")).specificationVersion == specification
    exact(folder)


@pytest.mark.parametrize("version", ["4", "7"])
def test_core_ml_can_keep_the_state_itself(exports: Exports, version: str) -> None:
    folder = exports(version, "coreml", precision="fp16", options={"ios": "18", "state": "mlstate"})
    description = coremltools.utils.load_spec(str(folder / "model.mlpackage")).description
    kept = {feature.name for feature in description.state}
    assert kept == {tensor.input for tensor in manifest.read(folder).state}
    assert [feature.name for feature in description.input] == ["tokens"]
    assert [feature.name for feature in description.output] == ["logits"]
    passed(folder)


@pytest.mark.parametrize(
    ("ios", "precision", "message"),
    [
        ("16", "fp16", "MLState needs iOS 18, not 16"),
        ("17", "fp16", "MLState needs iOS 18, not 17"),
        ("18", "fp32", "MLState is float16 only, not fp32"),  # coremltools refuses other types on every system
    ],
)
def test_core_ml_keeps_the_state_only_from_ios_18_in_float16(
    exports: Exports, tmp_path: Path, ios: str, precision: str, message: str
) -> None:
    chosen = {"state": "mlstate", "ios": ios}
    with pytest.raises(WrongCall, match=message):
        export(exports.checkpoint("7"), targets=["coreml"], precision=precision, options=chosen, out=tmp_path)
    assert not list(tmp_path.iterdir())


def copied(folder: Path, into: Path) -> Path:
    """A copy that may be altered."""
    return Path(shutil.copytree(folder, into / folder.name))


def swap_two_weights(folder: Path) -> None:
    """Exchange the bytes of two matrices of one shape in the data file, names and shapes staying as they are."""
    stored = onnx.load(folder / "decode.onnx", load_external_data=False).graph.initializer
    places = {t.name: {e.key: e.value for e in t.external_data} for t in stored if t.external_data}
    one, other = (places[f"blocks.1.att.{name}.weight"] for name in ("key", "receptance"))
    path = folder / "model.onnx.data"
    data = bytearray(path.read_bytes())
    first, second = (slice(int(p["offset"]), int(p["offset"]) + int(p["length"])) for p in (one, other))
    data[first], data[second] = data[second], data[first]
    path.write_bytes(data)


def test_swapped_weights_under_a_right_hash_fail(exports: Exports, tmp_path: Path) -> None:
    folder = copied(exports("7", "onnx-cpu"), tmp_path)
    swap_two_weights(folder)
    document = manifest.read(folder)
    manifest.write(dataclasses.replace(document, files=manifest.list_files(folder)), folder)
    row = validated(folder)
    assert row.outcome is Outcome.FAIL
    assert row.free.worst > 100 * BOUND
    assert any("max|Δlogit|" in reason for reason in row.reasons)
    assert any("blocks.1.att" in reason for reason in row.reasons)  # and block 0, which is right, is not blamed


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("onnx-cpu", "model.onnx.data"),
        ("onnx-cpu", "decode.onnx"),
        ("coreml", "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"),
        ("executorch-xnnpack", "model.pte"),
    ],
)
def test_a_flipped_bit_is_refused_with_the_name_of_the_file(
    exports: Exports, tmp_path: Path, target: str, name: str
) -> None:
    folder = copied(exports("7", target, prefill=PREFILL.get(target, ())), tmp_path)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 0x10
    (folder / name).write_bytes(data)
    with pytest.raises(BadArtifact, match=rf"{name} does not match its SHA-256"):
        runtimes.open_session(folder)
    row = validated(folder)
    assert row.outcome is Outcome.ERROR
    assert name in row.reasons[0]


def test_opening_a_package_with_coremltools_leaves_it_as_it_was(exports: Exports, tmp_path: Path) -> None:
    folder = copied(exports("7", "coreml"), tmp_path)
    coremltools.utils.load_spec(str(folder / "model.mlpackage"))
    assert manifest.list_files(folder) == manifest.read(folder).files
