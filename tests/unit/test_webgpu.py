"""The WebGPU target in numbers on the CPU, and on an adapter where there is one: all of it there, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_exports import TOKENS, exported, in_chunks, in_torch, stepping

import runtimes
from exporter import ports, versions
from exporter.contract import Spelling
from exporter.models.parameters import materialise
from exporter.models.primitives import L2Normalise
from exporter.passes import onnx_columns, torch_half
from runtimes import manifest, ort_gpu, ort_webgpu
from runtimes.contract import Session
from runtimes.errors import BadArtifact, Missing
from tests.models import case
from tests.requirements import require
from validation import validate
from validation.outcome import Outcome

pytestmark = pytest.mark.slow

EXACT, HALF = 5e-6, 5e-3  # of a logit or a state, of a model so small
ON_CPU = {
    "If",
    "Loop",
    "Scan",
    "Shape",
    "NonZero",
    "DynamicQuantizeMatMul",
}  # what the provider leaves to the processor


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("7", "onnx-webgpu", tmp_path_factory.mktemp("whole"), prefill=(4,))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_columns, "PIECE", 16)  # so that a width of 32 has several
        yield exported("7", "onnx-webgpu", tmp_path_factory.mktemp("half"), precision="fp16")


@pytest.fixture(scope="module")
def four_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("7", "onnx-webgpu", tmp_path_factory.mktemp("four"), precision="int4")


@pytest.fixture
def adapter() -> None:
    require("webgpu", ort_webgpu.missing())


def graphs(folder: Path) -> list[onnx.GraphProto]:
    return [onnx.load(path, load_external_data=False).graph for path in sorted(folder.glob("*.onnx"))]


def test_no_graph_has_a_free_size_or_a_node_for_the_processor(whole: Path, half: Path, four_bits: Path) -> None:
    found = [graph for folder in (whole, half, four_bits) for graph in graphs(folder)]
    assert len(found) == 4
    for graph in found:
        assert not ON_CPU & {node.op_type for node in graph.node}
        for port in (*graph.input, *graph.output):
            assert all(size.dim_value > 0 for size in port.type.tensor_type.shape.dim)


def test_the_graphs_share_one_data_file(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir() if path.suffix in (".onnx", ".data")) == [
        "decode.onnx",
        "model.onnx.data",
        "prefill4.onnx",
    ]
    assert (whole / "prefill4.onnx").stat().st_size < (whole / "model.onnx.data").stat().st_size


@pytest.mark.parametrize(("precision", "bound"), [("whole", EXACT), ("half", HALF)])
def test_on_the_cpu_it_is_the_checkpoint(precision: str, bound: float, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(precision)
    assert stepping(runtimes.open_session(folder, "ort:cpu"), in_torch(folder)) < bound


def test_half_precision_keeps_recurrences_and_logits_in_float32(half: Path) -> None:
    types = {tensor.name.rpartition(".")[2]: tensor.dtype for tensor in manifest.read(half).state}
    assert types == {"shift": "float16", "wkv": "float32"}
    decode = graphs(half)[0]
    assert {port.name: port.type.tensor_type.elem_type for port in decode.output}["logits"] == onnx.TensorProto.FLOAT
    by_name = {tensor.name: tensor for tensor in decode.initializer}
    taken = [by_name[node.input[1]] for node in decode.node if node.op_type == "MatMul" and node.input[1] in by_name]
    assert {tensor.data_type for tensor in taken} == {onnx.TensorProto.FLOAT16}
    assert {len(tensor.dims) for tensor in taken} == {2, 3}  # in pieces where there are several


def test_keys_whose_squares_float16_cannot_hold_are_normalised() -> None:
    weights, version = case("7")[0], versions.load("7")
    spec = version.spec("7", weights, 64e-5)
    module = version.build(spec, weights, Spelling())
    torch_half.halve(module, ports.own(spec), torch.float16)
    for _ in materialise(module):
        pass
    norm = next(part for part in module.modules() if isinstance(part, L2Normalise))
    assert norm(torch.full((1, 3, 32), 300.0, dtype=torch.float16)).numpy() == pytest.approx(32**-0.5, rel=1e-3)


def test_products_in_pieces_are_nearer_than_whole_ones(tmp_path: Path) -> None:
    """By the sum as the provider makes it: float16, one addend after another."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(4096).astype(np.float16), rng.standard_normal(4096).astype(np.float16)
    exact = float(x.astype(np.float64) @ w.astype(np.float64))
    terms = x * w
    in_turn = np.add.accumulate(terms, dtype=np.float16)[-1]
    pieces = np.add.accumulate(terms.reshape(-1, onnx_columns.PIECE), axis=1, dtype=np.float16)[:, -1]
    assert abs(pieces.astype(np.float32).sum() - exact) < abs(float(in_turn) - exact) / 2


def test_the_probe_is_a_model() -> None:
    model = onnx.load_model_from_string(ort_webgpu.PROBE)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Relu"]


@pytest.fixture
def unasked() -> Iterator[None]:
    """What was found before is forgotten, and what is found within as well."""
    kept = (ort_webgpu.missing, ort_webgpu.device)
    for found in kept:
        found.cache_clear()
    yield
    for found in kept:
        found.cache_clear()


def test_without_the_package_it_is_missing_by_name(unasked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_webgpu, "PACKAGE", "no_such_package")
    assert "pip install 'rwkv-export[webgpu]'" in str(ort_webgpu.missing())


def test_a_software_adapter_has_to_be_allowed(unasked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_device() -> None:
        raise Missing("finds no GPU")

    monkeypatch.setattr(ort_webgpu, "device", no_device)
    require(
        "webgpu", "onnxruntime-ep-webgpu is not installed" if not ort_webgpu.find_spec(ort_webgpu.PACKAGE) else None
    )
    assert ort_webgpu.missing() == "finds no GPU"


def opened(folder: Path) -> Session:
    return runtimes.open_session(folder, "ort:webgpu")


@pytest.fixture(scope="module")
def session(whole: Path) -> Session:
    """One for several tests: most of their time is shaders being compiled."""
    require("webgpu", ort_webgpu.missing())
    return opened(whole)


def test_on_the_adapter_it_is_the_checkpoint(session: Session, whole: Path) -> None:
    assert stepping(session, in_torch(whole)) < EXACT
    placed = session.placement()
    (unit,) = placed.nodes
    assert placed.observed == "ort:webgpu"
    assert unit.startswith(ort_webgpu.PROVIDER)


def test_prefill_on_the_adapter_is_stepping(session: Session, whole: Path) -> None:
    assert in_chunks(session, in_torch(whole), [4, 4, 2]) < EXACT


def test_a_state_stays_what_it_was_however_often_calls_are_replayed(session: Session) -> None:
    start = session.step(TOKENS[0], session.initial_state())
    before, first = session.read_state(start.state), session.step(7, start.state).logits
    state = start.state
    for _ in range(2):
        for token in TOKENS:
            state = session.step(token, state).state
    assert all(np.array_equal(before[name], array) for name, array in session.read_state(start.state).items())
    assert np.abs(session.step(7, start.state).logits - first).max() < EXACT
    copied = session.write_state(before)
    assert np.abs(session.step(7, copied).logits - first).max() < EXACT


def test_more_pairs_of_states_than_are_recorded(adapter: None, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_gpu, "MOST_RECORDED", 1)
    session = opened(whole)
    assert stepping(session, in_torch(whole)) < EXACT
    assert stepping(session, in_torch(whole)) < EXACT


@pytest.mark.parametrize("precision", ["half", "four_bits"])
def test_validation_passes_on_the_adapter(adapter: None, precision: str, request: pytest.FixtureRequest) -> None:
    (row,) = validate([request.getfixturevalue(precision)], on=["ort:webgpu"], steps=16).parity
    assert row.outcome is Outcome.PASS, row.reasons
    assert row.identity.evidence == ("emulated" if ort_webgpu.device().emulated else "run")


def test_a_graph_with_nodes_for_the_processor_is_refused(adapter: None, tmp_path: Path) -> None:
    folder = exported("7", "onnx-cpu", tmp_path, precision="int8")
    with pytest.raises(BadArtifact, match=r"leaves nodes of .* to the CPU") as caught:
        opened(folder)
    assert "onnx-webgpu" in str(caught.value.hint)
