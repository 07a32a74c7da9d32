"""Profiles of small programs with a known number of operators, and traces written by hand whose sums are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from onnx import TensorProto, helper, numpy_helper

from exporter.quiet import quiet
from runtimes import manifest, ort_profile
from runtimes.backends import pte
from runtimes.contract import Artifact
from runtimes.errors import Missing, WrongCall
from runtimes.profile import QUICKEST, STEPS, Event, Profile, Side, profile, summarise
from runtimes.pte import profile as pte_profile
from rwkv_export import tables
from tests.unit import small_pte
from validation import measure, outcome
from validation.outcome import Identity, Latency, Machine, Outcome, Results, Samples
from validation.profile import profiled

pytestmark = pytest.mark.slow

MACHINE = Machine("Linux", "Test CPU", 1, 0, "", "3.11", {})
AROUND = "inputs and outputs"


@pytest.fixture(scope="module")
def delegated(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Two linears, a tanh and additions inside XNNPACK, the embedding outside; the weights in a file of their own."""
    return small_pte.write(tmp_path_factory.mktemp("delegated"), separate=True)


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same without a delegate."""
    folder = tmp_path_factory.mktemp("portable")
    with quiet():
        programs = {name: small_pte.traced(size, torch.int64) for name, size in small_pte.METHODS.items()}
        (folder / "model.pte").write_bytes(to_edge_transform_and_lower(programs).to_executorch().buffer)
    return small_pte.describe(folder)


@pytest.fixture(scope="module")
def branching(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An ONNX step whose tanh runs in a branch."""
    folder = tmp_path_factory.mktemp("branching")
    onnx.save(branching_step(), folder / "model.onnx")
    return small_pte.describe(folder, file="model.onnx")


def branching_step() -> onnx.ModelProto:
    def port(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    def branch(name: str, operator: str) -> onnx.GraphProto:
        node = helper.make_node(operator, ["mixed"], [name])
        return helper.make_graph([node], name, [], [port(name, 1, small_pte.WIDTH)])

    branches = {"then_branch": branch("bent", "Tanh"), "else_branch": branch("turned", "Neg")}
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["row"]),
        helper.make_node("Add", ["row", "memory"], ["mixed"]),
        helper.make_node("Greater", ["tokens", "minus_one"], ["yes"]),
        helper.make_node("If", ["yes"], ["memory.next"], **branches),
        helper.make_node("MatMul", ["memory.next", "head"], ["logits"]),
        helper.make_node("Sub", ["seen", "one"], ["seen.next"]),
        helper.make_node("Neg", ["kept"], ["kept.next"]),
    ]
    chance = np.random.default_rng(0)
    held = {
        "table": chance.normal(size=(small_pte.VOCAB, small_pte.WIDTH)).astype(np.float32),
        "head": chance.normal(size=(small_pte.WIDTH, small_pte.VOCAB)).astype(np.float32),
        "one": np.ones(1, np.float32),
        "minus_one": np.asarray([-1]),
    }
    inputs = [port("tokens", 1, kind=TensorProto.INT64), *(port(each.input, *each.shape) for each in small_pte.STATE)]
    outputs = [port("logits", 1, small_pte.VOCAB), *(port(each.output, *each.shape) for each in small_pte.STATE)]
    tensors = [numpy_helper.from_array(value, name) for name, value in held.items()]
    graph = helper.make_graph(nodes, "step", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def calls(found: Profile, side: Side) -> dict[str, int]:
    return {row.name: row.calls for row in found.spent if row.side is side}


def assert_whole(found: Profile) -> None:
    """What the profiler saw fits into the wall time, which would show as more than all of it, and nothing is left."""
    assert sum(row.share for row in found.spent) == pytest.approx(1)
    assert next(row for row in found.spent if row.name == AROUND).median_ms > 0
    assert [row.total_ms for row in found.spent] == sorted((row.total_ms for row in found.spent), reverse=True)


def test_without_delegates_the_profile_counts_the_operators_of_the_program(portable: Artifact) -> None:
    found = profile(portable, "pte:cpu", steps=8)
    assert calls(found, Side.RUNTIME) == pte.open_session(portable, "cpu").placement().nodes
    assert found.delegates == ()
    assert (found.steps, found.looked_at) == (8, 2)
    assert_whole(found)


def test_kernels_inside_a_delegate_are_counted_by_kind(delegated: Artifact) -> None:
    found = profile(delegated, "pte:cpu", steps=8)
    kernels = calls(found, Side.DELEGATE)
    assert found.delegates == ("XnnpackBackend",)
    assert sum(count for name, count in kernels.items() if name.startswith("Fully Connected")) == 2
    assert not any("#" in name for name in kernels)
    assert calls(found, Side.RUNTIME)["aten::embedding"] == 1
    assert_whole(found)


def test_nodes_of_a_branch_are_counted_once(branching: Artifact) -> None:
    found = profile(branching, "ort:cpu", steps=8)
    nodes = ("Gather", "Add", "Greater", "If", "Tanh", "MatMul", "Sub", "Neg")
    assert calls(found, Side.RUNTIME) == dict.fromkeys(nodes, 1)
    assert {row.unit for row in found.spent if row.side is Side.RUNTIME} == {"CPUExecutionProvider"}
    assert_whole(found)


def node(operator: str, start: int, length: int) -> dict[str, Any]:
    about = {"op_name": operator, "provider": "CPU"}
    return {"name": f"{operator}_kernel_time", "ts": start, "dur": length, "args": about}


def test_time_inside_a_node_is_not_counted_for_the_node_too(tmp_path: Path) -> None:
    runs: list[dict[str, Any]] = [{"name": "model_run", "ts": start, "dur": 100, "args": {}} for start in (0, 100)]
    first = [node("Tanh", 30, 20), node("If", 60, 5), node("Neg", 55, 25), node("If", 20, 70), node("Add", 0, 20)]
    (tmp_path / "trace.json").write_text(json.dumps([*first, *runs, node("Add", 100, 40)]))
    one, other = ort_profile.read(tmp_path / "trace.json")
    assert sorted((event.name, round(1000 * event.ms)) for event in one) == [
        ("Add", 20),
        ("If", 5),
        ("If", 25),
        ("Neg", 20),
        ("Tanh", 20),
        ("between nodes, profiling included", 10),
    ]
    assert [round(1000 * event.ms) for event in other] == [40, 60]


def moment(name: str | None, instruction: int, us: int, *, kernel: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        chain_index=-1 if instruction < 0 else 0,
        instruction_id=max(0, instruction),
        delegate_debug_id_int=-1,
        delegate_debug_id_str=kernel,
        start_time=7000,
        end_time=7000 + 1000 * us,
    )


def test_overhead_of_a_delegate_and_of_the_method_is_what_no_call_accounts_for() -> None:
    events = [
        moment("native_call_add.out", 0, 9),
        moment("OPERATOR_CALL", 0, 10),
        moment(None, 1, 12, kernel="Add (ND) #1"),
        moment(None, 1, 13, kernel="Add (ND) #2"),
        moment("DELEGATE_CALL", 1, 30),
        moment("DELEGATE_CALL", 2, 40),
        moment("Method::execute", -1, 100),
    ]
    names = {(0, 0): "aten::add", (0, 1): "XnnpackBackend", (0, 2): "SilentBackend"}
    found = pte_profile.execution(events, names)
    assert [(event.name, event.unit, str(event.side), round(1000 * event.ms)) for event in found] == [
        ("aten::add", "", "runtime", 10),
        ("Add (ND)", "XnnpackBackend", "delegate", 12),
        ("Add (ND)", "XnnpackBackend", "delegate", 13),
        ("around the delegate's kernels, profiling included", "XnnpackBackend", "overhead", 5),
        ("the whole call", "SilentBackend", "delegate", 40),
        ("between calls, profiling included", "", "overhead", 20),
    ]


def test_only_the_quickest_steps_are_looked_at() -> None:
    quick = [Event("a", "", Side.RUNTIME, 2.0), Event("a", "", Side.RUNTIME, 3.0), Event("b", "X", Side.DELEGATE, 1.0)]
    slow = [Event("a", "", Side.RUNTIME, 80.0)]
    found = summarise([slow] * 6 + [quick] * 2, [0.1] * 6 + [0.008, 0.012], around=AROUND)
    assert (found.steps, found.looked_at) == (8, 8 // QUICKEST)
    assert found.step_ms == pytest.approx(10.0)
    by_name = {row.name: row for row in found.spent}
    assert (by_name["a"].calls, by_name["a"].total_ms, by_name["a"].median_ms) == (2, 10.0, 5.0)
    assert {name: row.share for name, row in by_name.items()} == pytest.approx({"a": 0.5, AROUND: 0.4, "b": 0.1})
    assert [found.share(side) for side in Side] == pytest.approx([0.1, 0.5, 0.4])


@pytest.fixture(scope="module")
def measured(portable: Artifact) -> Results:
    manifest.write(portable.manifest, portable.folder)
    return measure([portable.folder], prompt=3, tokens=10, profile=True)


def test_bench_profiles_beside_its_samples(measured: Results) -> None:
    [row] = measured.latency
    assert row.outcome is Outcome.PASS
    assert row.decode
    assert len(row.decode.seconds) == 10
    assert row.profile
    assert row.profile.steps == STEPS
    assert row.slowdown
    assert row.slowdown > 0


def test_the_terminal_shows_operators_and_what_profiling_cost(
    measured: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.print_results(measured)
    said = capsys.readouterr().out
    assert "a token of" in said
    assert "aten::embedding" in said
    assert AROUND in said
    assert f"of {STEPS} profiled steps" in said
    assert "times an unprofiled one" in said


def test_a_profile_is_read_back_as_it_was_written_and_strictly(measured: Results, tmp_path: Path) -> None:
    outcome.write(measured, tmp_path / "results.json")
    assert outcome.read(tmp_path / "results.json") == measured
    document = json.loads((tmp_path / "results.json").read_text())
    document["latency"][0]["profile"]["spent"][0]["side"] = "elsewhere"
    (tmp_path / "odd.json").write_text(json.dumps(document))
    with pytest.raises(WrongCall, match=r"side is str 'elsewhere', expected one of delegate"):
        outcome.read(tmp_path / "odd.json")


def test_slowdown_compares_the_quickest_with_the_quickest() -> None:
    seconds = (0.004, *[0.1] * 6, 0.002)
    found = replace(timed("run"), decode=Samples(seconds, 100.0, 100.0, 100.0, 0.0, 2.0, 1))
    assert found.slowdown is None
    assert replace(found, profile=Profile(40, 10, 6.0, ())).slowdown == pytest.approx(2.0)


def timed(evidence: str, place: str = "pte:cpu") -> Latency:
    identity = Identity("small", "small", "0", "executorch-xnnpack", "fp32", place, place, {}, evidence)
    return Latency(identity, Outcome.PASS, ())


@pytest.mark.parametrize("evidence", ["emulated", "interpreted"])
def test_what_stands_in_for_a_device_is_not_profiled(delegated: Artifact, evidence: str) -> None:
    row = profiled(timed(evidence), delegated)
    assert row.profile is None
    assert row.warnings == ("no profile for pte:cpu: its times are not those of the device it stands for",)


def test_a_runtime_without_a_profiler_is_said_and_the_timing_stays(delegated: Artifact) -> None:
    row = profiled(timed("run", "eager:cpu"), delegated)
    assert row == replace(
        timed("run", "eager:cpu"), warnings=("no profile for eager:cpu: that runtime has no profiler",)
    )


def test_the_road_without_a_tracer_says_so(delegated: Artifact) -> None:
    with pytest.raises(Missing, match="event tracer"):
        pte.profile(delegated, "cpu-direct", 1)
