"""ONNX for Hexagon: contexts that hold every node, the checkpoint's numbers on the emulator, guards that hold."""

from __future__ import annotations

import importlib.util
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from exporter import calibration, pipeline, ports, registry
from exporter.model import open_model
from exporter.passes import qnn_check, qnn_context, qnn_quantise
from exporter.passes.qnn_activations import keep_activations_apart
from exporter.progress import silent
from exporter.synth import synth
from exporter.targets import qnn as target
from runtimes import manifest
from runtimes.backends import qnn as backend
from runtimes.contract import Artifact
from runtimes.errors import BadArtifact, WrongCall
from runtimes.qnn import device, provider
from runtimes.qnn.chips import CHIPS
from tests.requirements import require
from validation.outcome import Outcome, Parity
from validation.runner import exit_code, validate

pytestmark = pytest.mark.slow

STEPS = 6
NAMES = {"sm8550": b"SM8550", "sm8650": b"SM8650", "sm8750": b"SM8750", "xelite": b"SC8380XP"}  # in its own binaries


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qnn")


def checkpoint(version: str, folder: Path) -> Path:
    return synth(version, layers=1, width=128, vocab=257, out=folder / f"v{version}.pth")


def exported(version: str, folder: Path, precision: str, prefill: Sequence[int] = (), **options: str) -> Path:
    require("qnn", provider.missing())
    source = checkpoint(version, folder)
    chosen = {"soc": "sm8750", **options}
    (made,) = pipeline.export(source, targets=["qnn"], precision=precision, options=chosen, prefill=prefill, out=folder)
    return made


def judged(version: str, made: Path) -> Parity:
    (row,) = validate([made], checkpoint=made.parent / f"v{version}.pth", steps=STEPS, quality_tokens=1).parity
    return row


@pytest.fixture(scope="module")
def half(folder: Path) -> Path:
    return exported("7", folder, "fp16")


@pytest.fixture(scope="module")
def coarse(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "CALIBRATION", 32)
        return exported("6", folder, "a16w8", prefill=[4])


def test_the_context_that_ships_agrees_with_the_checkpoint_as_well_as_float16_can(half: Path) -> None:
    row = judged("7", half)
    assert row.outcome is Outcome.PASS, row.reasons
    assert (row.identity.observed, row.identity.evidence) == ("qnn:htp-emulator", "emulated")
    assert row.identity.nodes == {provider.PROVIDER: 1}
    assert row.free is not None
    assert 1e-4 < row.free.worst < 1e-2  # 2e-2 with activations that are fused into products
    assert row.free.top1 == 1
    assert row.hops is None


def test_every_node_is_inside_and_counted(half: Path) -> None:
    (graph,) = manifest.read(half).graphs
    assert (graph.file, graph.compiled) == ("decode.onnx", "decode_ctx.onnx")
    found = graph.coverage
    assert found is not None
    assert (found.delegates, found.outside) == ({provider.PROVIDER: 1}, {})
    assert found.inside["Gather"] == 1
    assert found.inside["LayerNormalization"] == 4  # before either mix, over heads, before the head
    model = onnx.load(half / graph.file, load_external_data=False)
    gemms = [node.input[1] for node in model.graph.node if node.op_type == "Gemm"]
    assert found.macs_inside > len(gemms) * 128
    assert [node.op_type for node in onnx.load(half / "decode_ctx.onnx").graph.node] == ["EPContext"]


@pytest.mark.parametrize("soc", ["sm8550", "sm8650", "sm8750", "xelite"])
def test_the_context_names_the_processor_that_was_asked_for(half: Path, soc: str, tmp_path: Path) -> None:
    for name in ("decode.onnx", "model.onnx.data"):
        shutil.copy(half / name, tmp_path)
    ((context, taken),) = qnn_context.compiled([tmp_path / "decode.onnx"], soc, silent).values()
    (binary,) = tmp_path.glob("*.bin")
    assert b"soc_type=%s;" % NAMES[soc] in binary.read_bytes()  # QNN's own record of what it compiled for
    assert (context, taken.outside) == ("decode_ctx.onnx", {})


def test_a_context_computes_what_its_graph_compiled_anew_computes(half: Path) -> None:
    artifact = manifest.open_artifact(half)
    shipped = backend.open_session(artifact, "htp-emulator")
    settings = provider.compiling(CHIPS["sm8750"])
    anew = provider.session(half / "decode.onnx", settings, {})
    state = shipped.initial_state()
    for token in (5, 200):
        feed = {tensor.input: array for tensor, array in zip(artifact.manifest.state, state, strict=True)}
        logits, *new = anew.run(None, {"tokens": np.array([token]), **feed})
        step = shipped.step(token, state)
        np.testing.assert_array_equal(step.logits, logits[0])
        state = step.state
        for got, expected in zip(shipped.read_state(state).values(), new, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_eight_bit_projections_pass_in_two_hops(coarse: Path) -> None:
    row = judged("6", coarse)
    assert row.outcome is Outcome.PASS, row.reasons
    assert row.hops is not None
    assert row.hops.place == "ort:cpu"
    assert row.hops.kernel.top1 == 1
    assert 0 < row.hops.kernel.worst < row.hops.quality.worst
    assert {"1", "4", "uneven"} <= row.prefill.keys()


def test_only_products_with_constants_are_quantised_and_weights_are_stored_once(coarse: Path) -> None:
    graph = onnx.load(coarse / "decode.onnx", load_external_data=False).graph
    stored = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8]
    rounded = {tensor.name for tensor in stored if len(tensor.dims) == 2}
    made_by = {name: node for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type == "Gemm"]
    assert len(products) == len(rounded) > 8
    for node in products:
        assert [made_by[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
    taken = {name for node in products for name in node.input}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0] not in taken:
            assert made_by[made_by[node.input[0]].input[0]].op_type == "Gemm"  # what a product gives
    (binary,) = coarse.glob("*.bin")
    contexts = [onnx.load(coarse / name).graph.node[0] for name in ("decode_ctx.onnx", "prefill4_ctx.onnx")]
    named = [each.s.decode() for node in contexts for each in node.attribute if each.name == "ep_cache_context"]
    assert named == [binary.name] * 2
    data = (coarse / "model.onnx.data").stat().st_size
    assert (coarse / "prefill4.onnx").stat().st_size < (coarse / "decode.onnx").stat().st_size + data / 4


@pytest.mark.parametrize("strict", [True, False])
def test_without_a_processor_it_raises_where_onnx_runtime_would_go_on_with_the_cpu(half: Path, strict: bool) -> None:
    with pytest.raises(Exception, match="soc_model is not specified"):
        provider.session(half / "decode.onnx", {"enable_htp_fp16_precision": "1"}, {}, strict=strict)


def test_a_session_that_fell_back_says_where_it_ran() -> None:
    def part(name: str, operator: str) -> Any:
        return SimpleNamespace(ep_name=name, get_nodes=lambda: [SimpleNamespace(op_type=operator)])

    parts = [part(provider.PROVIDER, "EPContext"), part("CPUExecutionProvider", "LayerNormalization")]
    session = SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)
    placed = backend._placement([session], "htp-emulator")
    assert placed.requested == "qnn:htp-emulator"
    assert placed.observed == "qnn:CPUExecutionProvider+QNNExecutionProvider"
    assert placed.nodes == {provider.PROVIDER: 1, "CPUExecutionProvider": 1}


def test_what_is_left_to_the_cpu_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def session(path: Path, settings: Any, entries: Any, *, strict: bool = True) -> str:
        if strict:
            raise RuntimeError("some nodes were assigned to the default CPU EP\nand more")
        return "lenient"

    taken = {"CPUExecutionProvider": Counter(LayerNormalization=7), provider.PROVIDER: Counter(Gemm=9)}
    monkeypatch.setattr(provider, "session", session)
    monkeypatch.setattr(provider, "assigned", lambda opened: taken)
    with pytest.raises(WrongCall, match=r"of decode for sm8550, QNN leaves to the CPU: LayerNormalization 7"):
        qnn_context.compiled([Path("decode.onnx")], "sm8550", silent)


def test_a_context_of_a_part_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft"), helper.make_node("Neg", ["y"], ["z"])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "part", [], [])), tmp_path / "part_ctx.onnx")
    with pytest.raises(WrongCall, match=r"for sm8850, QNN compiles a part only; part_ctx\.onnx has EPContext, Neg"):
        qnn_context._require_whole(tmp_path / "part_ctx.onnx", "sm8850")


def test_activations_are_written_apart_and_compute_the_same() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [64])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64]) for name in "yz"]
    nodes = [helper.make_node("Sigmoid", ["x"], ["y"]), helper.make_node("Tanh", ["x"], ["z"])]
    graph = helper.make_graph(nodes, "activations", [x], outputs)
    before = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = ir.from_proto(before)
    keep_activations_apart(model)
    after = ir.to_proto(model)
    assert [node.op_type for node in after.graph.node] == ["Mul", "Tanh", "Mul", "Add", "Neg", "Tanh", "Neg"]
    assert all(node.name for node in after.graph.node)
    given = {"x": np.linspace(-30, 30, 64, dtype=np.float32)}
    both = [onnxruntime.InferenceSession(each.SerializeToString()).run(None, given) for each in (before, after)]
    for expected, got in zip(*both, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_calibration_sees_the_state_that_a_text_leads_to(half: Path) -> None:
    named = ports.own(open_model(half.parent / "v7.pth").spec)
    read: list[int] = []
    reader = qnn_quantise._reader(half / "decode.onnx", named, [7, 8, 9], read.append)
    session = onnxruntime.InferenceSession(half / "decode.onnx")
    _, *state = (tensor.numpy() for tensor in named.arguments(1))
    for token in (7, 8, 9):
        feed = reader.get_next()
        assert feed["tokens"].tolist() == [token]
        for tensor, expected in zip(named.state, state, strict=True):
            np.testing.assert_array_equal(feed[tensor.input], expected)
        _, *state = session.run(named.outputs(), feed)
    assert reader.get_next() is None
    assert read == [1, 1, 1]
    with pytest.raises(WrongCall, match="a text of 0 tokens is too short to calibrate 1 at a time"):
        qnn_quantise._reader(half / "decode.onnx", named, [], read.append)


def test_a_graph_that_the_emulator_computes_in_another_order_is_refused(
    coarse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = ports.own(open_model(coarse.parent / "v6.pth").spec)
    monkeypatch.setattr(provider, "session", lambda path, settings, entries: Shuffled(path))
    with pytest.raises(WrongCall, match=r"for sm8750, QNN computes prefill4 wrongly: blocks\.0\.att\.wkv\.next is off"):
        qnn_check.require_right(coarse / "prefill4.onnx", named, 257, "sm8750", silent)


class Shuffled:
    """ONNX Runtime's CPU, but the keys of the matrix state come out in reverse."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(path)

    def run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
        made = self.session.run(names, feed)
        return [each[:, :, ::-1] if name.endswith("wkv.next") else each for name, each in zip(names, made, strict=True)]


@pytest.mark.parametrize(
    ("version", "precision", "options", "message"),
    [
        ("7", "fp16", {"quantise": "all"}, "is for a16w8, not fp16"),
        ("7", "a16w8", {"quantise": "all", "keep": "head"}, "keeps no matrix"),
        ("7", "fp16", {"keep": "head"}, "quantises nothing to keep"),
        ("4", "a16w8", {"quantise": "all"}, r"cannot hold blocks\.0\.att\.pp, which starts at -1e\+30"),
    ],
)
def test_choices_that_exclude_each_other_are_refused(
    folder: Path, version: str, precision: str, options: dict[str, str], message: str
) -> None:
    spec = open_model(checkpoint(version, folder)).spec
    chosen = {"soc": "sm8650", "quantise": "projections", "keep": "none"} | options
    with pytest.raises(WrongCall, match=message):
        target.refuse(spec, precision, chosen)


def test_a_text_of_ones_own_is_read_where_something_calibrates_and_refused_elsewhere(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was a bright cold day", encoding="utf-8")
    content = calibration.read_text(text)
    assert calibration.passage(lambda words: [len(words)], content) == [len(content)]
    qnn = registry.targets()["qnn"]
    recorded = calibration.require_read(qnn, "a16w8", {}, content)
    assert len(recorded["calibration"]) == 64
    with pytest.raises(WrongCall, match="qnn in fp16 reads no text to calibrate on"):
        calibration.require_read(qnn, "fp16", {}, content)
    text.write_bytes(b"\xff\xfe")
    with pytest.raises(WrongCall, match="to calibrate on"):
        calibration.read_text(text)


def test_an_artifact_of_another_target_is_not_opened(half: Path) -> None:
    document = manifest.read(half)
    graphs = tuple(replace(graph, compiled=None) for graph in document.graphs)
    with pytest.raises(BadArtifact, match="was not compiled for a Hexagon NPU"):
        backend.open_session(Artifact(half, replace(document, graphs=graphs)), "htp-emulator")


def test_without_the_package_nothing_passes_and_every_row_says_what_to_install(
    half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> Any:
        return None if name == "onnxruntime_qnn" else importlib.util.find_spec(name)

    monkeypatch.setattr(provider, "find_spec", find)
    sentence = "the Python package onnxruntime-qnn is not installed (pip install 'rwkv-export[qnn]')"
    assert target.missing() == backend.missing("htp-emulator") == sentence
    results = validate([half], checkpoint=half.parent / "v7.pth", steps=STEPS, quality=True)
    for row in (*results.parity, *results.quality):
        assert row.outcome is Outcome.MISSING
        assert sentence in row.reasons[0]
    assert exit_code(results) == 3


def test_the_processor_itself_is_not_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.platform, "machine", lambda: "x86_64")
    assert "a Hexagon NPU is part of a Snapdragon" in str(backend.missing("htp"))


def test_libraries_take_their_own_layout_while_they_are_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    patched = device.Provider()
    patched.functions[device.DEVICE_CREATE] = 2
    monkeypatch.setattr(device, "_given", [(patched, 1)])
    with device.as_published():
        assert patched.functions[device.DEVICE_CREATE] == 1
    assert patched.functions[device.DEVICE_CREATE] == 2
