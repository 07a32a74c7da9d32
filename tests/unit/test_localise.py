"""Faults planted in a saved ONNX graph, each of which must be found at its layer and operation, by its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import localise_cases as cases
import numpy as np
import onnx
import pytest
from localise_cases import Change, OnnxGraph
from onnx import helper

import runtimes
from runtimes import manifest
from runtimes.errors import WrongCall
from validation.localise import levels, localise, search
from validation.localise.catalogue import causes
from validation.localise.explain import LOOKS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def traced() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        cases.trace_once(patch)
        yield


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.exported(tmp_path_factory.mktemp("onnx"), "onnx-cpu")


def swap_operands(graph: OnnxGraph) -> None:
    node = graph.node("sub_2")
    node.input[:] = reversed(node.input)


def take_the_other_shift(graph: OnnxGraph) -> None:
    graph.node("sub_2").input[0] = "blocks.1.ffn.shift"


def transpose_the_state(graph: OnnxGraph) -> None:
    graph.before("matmul_3", "Transpose", "blocks.1.att.wkv", perm=[0, 1, 3, 2])


def return_the_state_transposed(graph: OnnxGraph) -> None:
    graph.node("blocks.1.att.wkv.next").output[0] = "inner"
    graph.read_instead("blocks.1.att.wkv.next", "inner")
    graph.nodes.append(
        helper.make_node("Transpose", ["inner"], ["blocks.1.att.wkv.next"], perm=[0, 1, 3, 2], name="planted")
    )


def leave_the_exponential_out(graph: OnnxGraph) -> None:
    graph.read_instead("exp_1", graph.node("exp_1").input[0])
    graph.nodes.remove(graph.node("exp_1"))


def lose_a_minus(graph: OnnxGraph) -> None:
    graph.node("neg_1").op_type = "Identity"


def add_for_multiply(graph: OnnxGraph) -> None:
    graph.node("mul_28").op_type = "Add"


def round_the_decay(graph: OnnxGraph) -> None:
    graph.through("exp_1", onnx.TensorProto.FLOAT16)


def round_to_bfloat16(graph: OnnxGraph) -> None:
    graph.through("linear_13", onnx.TensorProto.BFLOAT16)


def square_in_float16(graph: OnnxGraph) -> None:
    graph.through("mul_42", onnx.TensorProto.FLOAT16)


def drop_epsilon(graph: OnnxGraph) -> None:
    (epsilon,) = [each for each in graph.node("layer_norm_4").attribute if each.name == "epsilon"]
    epsilon.f = 0.0


def mistake_epsilon(graph: OnnxGraph) -> None:
    (epsilon,) = [each for each in graph.node("layer_norm_1").attribute if each.name == "epsilon"]
    epsilon.f = 1e-5


def flip_bits(graph: OnnxGraph) -> None:
    path, place = graph.stored("blocks.1.att.key.weight")
    cases.flip(path, place["offset"] + 256, 16)


def shift_weights(graph: OnnxGraph) -> None:
    graph.move("blocks.1.att.key.weight", 64)


def exchange_weights(graph: OnnxGraph) -> None:
    graph.node("linear_13").input[1] = "blocks.1.att.value.weight"


FAULTS: dict[Change, tuple[str, str, str, str]] = {
    swap_operands: ("blocks.1", "Sub node_sub_2", "swapped-operands", "sub_2"),
    take_the_other_shift: ("blocks.1", "Sub node_sub_2", "wrong-operand", "blocks.1.ffn.shift is taken"),
    transpose_the_state: ("blocks.1", "Transpose planted", "transposed", "blocks.1.att.wkv"),
    return_the_state_transposed: ("blocks.1", "Transpose planted", "transposed", "transpose"),
    leave_the_exponential_out: ("blocks.1", "Reshape node_view_17", "missing-operation", "exp"),
    lose_a_minus: ("blocks.1", "Identity node_neg_1", "sign", "neg_1"),
    add_for_multiply: ("blocks.1", "Add node_mul_28", "other-operation", "add in place of mul"),
    round_the_decay: ("blocks.1", "Cast planted", "decay-rounded-to-one", "are 1"),
    round_to_bfloat16: ("blocks.1", "Cast planted_back", "rounded-to-bfloat16", "bfloat16"),
    square_in_float16: ("blocks.1", "Cast planted", "square-overflow", "mul_42 reaches"),
    drop_epsilon: ("blocks.1", "LayerNormalization node_layer_norm_4", "eps-underflow", "vector of zeros"),
    mistake_epsilon: ("blocks.0", "LayerNormalization node_layer_norm_1", "other-epsilon", "1e-05 in place of 0.00064"),
    flip_bits: ("blocks.1", "Gemm node_linear_13", "wrong-weights", "16 of 4,096 values differ, between 64 and 80"),
    shift_weights: ("blocks.1", "Gemm node_linear_13", "wrong-weights", "16 places off"),
    exchange_weights: ("blocks.1", "Gemm node_linear_13", "wrong-weights", "value.weight is taken for"),
}


@pytest.mark.parametrize("change", FAULTS, ids=lambda change: change.__name__)
def test_a_planted_fault_is_found_and_named(change: Change, healthy: Path) -> None:
    layer, operation, cause, detail = FAULTS[change]
    artifact = cases.changed(healthy, change.__name__)
    graph = OnnxGraph(artifact)
    change(graph)
    graph.save()
    found = cases.found(artifact)
    assert found.lost
    assert found.first is not None and found.first.cause is not None
    assert (found.first.layer, found.first.op, found.first.cause.name) == (layer, operation, cause), found.sentence
    assert detail in found.first.cause.detail
    assert all(each.error is None or each.error < 1e-5 for each in found.first.before)
    assert found.first.op in found.sentence


def test_a_healthy_graph_loses_nothing_and_says_where_most_is_added(healthy: Path) -> None:
    found = cases.found(healthy)
    assert (found.lost, found.reasons, found.first, found.others, found.cause) == (False, (), None, (), None)
    assert [layer.name for layer in found.layers] == ["embedding", "blocks.0", "blocks.1", "head"]
    assert all(layer.worst is not None and layer.worst < 1 for layer in found.layers)
    assert found.most[0].op in found.sentence
    assert found.seen > 0.9 * found.operations  # ONNX has one operation for an l2 norm, the step has five


def test_states_that_change_places_in_the_manifest_are_found(healthy: Path) -> None:
    artifact = cases.changed(healthy, "ports")
    document = json.loads((artifact / "manifest.json").read_text())
    one, other = (each for each in document["state"] if each["name"] in ("blocks.0.att.shift", "blocks.0.ffn.shift"))
    one["output"], other["output"] = other["output"], one["output"]
    (artifact / "manifest.json").write_text(json.dumps(document))
    found = cases.found(artifact)
    assert found.first is not None and found.first.cause is not None
    assert (found.first.tensor, found.first.cause.name) == ("blocks.0.att.shift after the step", "wrong-operand")
    assert [place.tensor for place in found.others] == ["blocks.0.ffn.shift after the step"]


def test_a_fault_in_a_function_behind_a_choice_is_found(healthy: Path) -> None:
    artifact = cases.changed(healthy, "choice")
    graph = OnnxGraph(artifact)
    own, standard = helper.make_opsetid("rwkv_export", 1), helper.make_opsetid("", 18)
    body = [helper.make_node("Identity", ["x"], ["y"], name="planted")]
    graph.model.functions.append(helper.make_function("rwkv_export", "Negated", ["x"], ["y"], body, [standard]))
    graph.model.opset_import.append(own)
    negation = graph.node("neg_1")
    (value,), (result,) = negation.input, negation.output
    branches = {
        "then_branch": helper.make_node("Negated", [value], ["one"], domain="rwkv_export", name="call"),
        "else_branch": helper.make_node("Neg", [value], ["one"], name="right"),
    }
    given = helper.make_tensor_value_info("one", onnx.TensorProto.FLOAT, None)
    graphs = {name: helper.make_graph([node], name, [], [given]) for name, node in branches.items()}
    graph.model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "of_one"))
    at = graph.nodes.index(negation)
    graph.nodes[at : at + 1] = [
        helper.make_node("Size", ["tokens"], ["count"], name="count"),
        helper.make_node("Equal", ["count", "of_one"], ["single"], name="single"),
        helper.make_node("If", ["single"], [result], name="choice", **graphs),
    ]
    graph.save()
    found = cases.found(artifact)
    assert found.first is not None and found.first.cause is not None
    assert found.first.op.startswith("Identity")
    assert (found.first.module, found.first.cause.name) == ("blocks.1.att.recurrence.outer", "sign"), found.sentence


def test_few_bits_are_no_fault_and_wrong_ones_are(tmp_path: Path) -> None:
    artifact = cases.exported(tmp_path, "onnx-cpu", precision="int4")
    assert cases.found(artifact).first is None
    graph = OnnxGraph(artifact)
    key, value = graph.node("linear_13"), graph.node("linear_14")
    key.input[1:], value.input[1:] = list(value.input[1:]), list(key.input[1:])
    graph.save()
    found = cases.found(artifact)
    assert found.first is not None and found.first.cause is not None
    assert (found.first.op, found.first.cause.name) == ("MatMulNBits node_linear_13", "wrong-weights"), found.sentence
    assert [place.op for place in found.others] == ["MatMulNBits node_linear_14"]


class Damaged:
    """A session whose device gets the second layer's state wrong."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def read_state(self, state: Any) -> dict[str, Any]:
        wrong = dict(self._session.read_state(state))
        wrong["blocks.1.att.wkv"] = np.round(wrong["blocks.1.att.wkv"] * 1.3, 1)
        return wrong


def test_a_device_that_shows_no_values_is_searched_by_its_states(
    healthy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = cases.changed(healthy, "flat")
    graph = OnnxGraph(artifact)
    product = graph.node("matmul_3")
    flatten = helper.make_node("Squeeze", ["blocks.1.att.wkv"], ["flat"], name="flatten")
    other = helper.make_node("Squeeze", [product.input[1], "axis"], ["vector"], name="flatten_too")
    graph.model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "axis"))
    widen = helper.make_node("Unsqueeze", ["product", "axis"], [product.output[0]], name="widen")
    flatten.input.append("axis")
    at = graph.nodes.index(product)
    product.input[:], product.output[:] = ["flat", "vector"], ["product"]
    graph.nodes[at : at + 1] = [flatten, other, product, widen]
    graph.save()
    assert not cases.found(artifact).lost

    opened, require = runtimes.open_on, search.registry.require
    monkeypatch.setattr(runtimes, "open_on", lambda artifact, _: Damaged(opened(artifact, "ort:cpu")))
    monkeypatch.setattr(search.registry, "require", lambda place: require("ort:cpu"))
    found = cases.found(artifact, "qnn:htp-emulator")
    assert not found.whole
    assert found.first is not None and found.first.cause is not None
    assert (found.first.layer, found.first.tensor) == ("blocks.1", "blocks.1.att.wkv after the step")
    assert found.first.cause.name == "rank-3-state"
    assert "node_matmul_3" in found.first.cause.detail


def test_what_the_runtime_fuses_wrongly_is_told_apart(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = runtimes.open_on
    monkeypatch.setattr(runtimes, "open_on", lambda artifact, place: Damaged(opened(artifact, place)))
    found = cases.found(healthy)
    assert found.lost
    assert found.first is None
    assert found.cause is not None and found.cause.name == "fused-by-the-runtime"


def test_rounding_that_adds_up_has_no_single_place(healthy: Path) -> None:
    document = manifest.read(healthy)
    held = replace(document, target=replace(document.target, tolerance="fp32"), precision=document.precision)
    assert search._spread(held, fused=False).name == "rounding"
    four = replace(document, precision=replace(document.precision, weights="int4"))
    assert search._spread(four, fused=False).name == "few-bits"


def test_every_trap_of_the_table_is_looked_for() -> None:
    settled_elsewhere = {"few-bits", "rounding", "fused-by-the-runtime", "unknown"}
    assert list(LOOKS) == [name for name in causes() if name not in settled_elsewhere]
    assert settled_elsewhere < set(causes())


def test_no_tokens_are_refused(healthy: Path) -> None:
    with pytest.raises(WrongCall, match="0 tokens"):
        localise(healthy, tokens=0)


@pytest.mark.parametrize(
    ("precision", "activations"),
    [("w8a8", 8), ("a16w4", 16), ("16a8w", 16), ("8da4w", 8), ("int4-int8", 0), ("fp16", 0)],
)
def test_bits_of_activations_are_read_from_a_precision_s_name(precision: str, activations: int) -> None:
    found = levels.ACTIVATIONS.search(precision)
    assert int(next(filter(None, found.groups())) if found else 0) == activations
