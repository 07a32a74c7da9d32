"""Our own sides of the comparison with other engines: what is exported, where it runs, whom it stands against."""

from __future__ import annotations

import importlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import exporter
from exporter import registry
from exporter.checkpoint import open_checkpoint
from exporter.synth import synth
from runtimes import manifest
from runtimes.errors import WrongCall
from runtimes.registry import parse

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synth("7", out=tmp_path_factory.mktemp("tiny") / "tiny.pth")


def peers(name: str) -> Any:
    return importlib.import_module(f"peers.{name}")


def row(engine: str, precision: str, seconds: float) -> Any:
    return peers("contract").Row("tiny", 1, engine, precision, samples={"decode": ((seconds,),)})


def test_every_side_is_a_place_that_opens_its_target_at_its_precisions() -> None:
    for own in peers("contract").MINE.values():
        target, _ = registry.find(own.target)
        assert {"int8", "int4"} <= {*target.precisions, *own.names}
        assert set(own.names.values()) <= set(target.precisions)
        assert parse(own.place)[0] == target.runtime
        assert target.prefill


def test_precisions_of_other_names_are_lined_up_and_compared_with_equal_bits(tmp_path: Path) -> None:
    contract = peers("contract")
    kinds = [peers("ours").Ours(tmp_path, name) for name in contract.MINE]
    found = [(each.kind.name, each.precision) for each in peers("measuring").line_up(kinds, ["int8", "int4", "fp16"])]
    assert [precision for name, precision in found if name == contract.OURS] == ["int8", "int4", "fp16"]
    assert [precision for name, precision in found if name == contract.DIRECT] == ["8da8w", "8da4w", "fp16"]
    sides = [row(contract.DIRECT, "8da4w", 0.1), row(contract.PTE, "8da8w", 0.4), row("llama.cpp", "Q4_0", 0.2)]
    (ratio,) = peers("stats").ratios(sides)
    assert (ratio.engine, ratio.ours, ratio.precision, ratio.ratio.median) == (contract.DIRECT, "8da4w", "Q4_0", 2.0)


def test_bars_of_all_sides_stand_beside_each_other(tmp_path: Path) -> None:
    contract, plot = peers("contract"), peers("plot")
    rows = [row(engine, contract.called(engine, "int8"), 0.1) for engine in plot.COLOURS]
    panel = importlib.import_module("matplotlib.figure").Figure().subplots()
    plot._panel(panel, "decode", rows)
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in panel.patches)
    assert len(edges) == len(plot.COLOURS) == len(contract.MINE) + 2
    assert all(right <= left for (_, right), (left, _) in pairwise(edges))
    assert edges[0][0] > -0.5
    assert edges[-1][1] < 0.5
    assert len(panel.texts) == len(contract.MINE)  # ratios over ours


def test_a_delegate_reads_all_its_weights_and_none_of_the_table(tmp_path: Path) -> None:
    covered = manifest.Coverage({"XnnpackBackend": 1}, {"linear": 3}, {"embedding": 1}, 10, 0, 1000, 300)
    step = manifest.Graph(1, "model.pte", "tokens", "int64", "logits", "decode", coverage=covered)
    assert peers("ours").bytes_per_token(tmp_path, step) == 1000


def test_bytes_of_a_token_leave_out_what_only_lookups_read(tmp_path: Path) -> None:
    tensors = [
        numpy_helper.from_array(np.ones((8, 4), np.int8), "table"),
        numpy_helper.from_array(np.ones(8, np.float32), "table.scale"),
        numpy_helper.from_array(np.ones((4, 6), np.int8), "matrix"),
        numpy_helper.from_array(np.ones(4, np.float32), "both"),
    ]
    outside = TensorProto(name="outside", dims=[4, 100], data_type=TensorProto.UINT8)
    outside.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "data", "offset": "0", "length": "400"}.items():
        outside.external_data.add(key=key, value=value)
    nodes = [
        helper.make_node("GatherBlockQuantized", ["table", "ids", "table.scale"], ["x"], domain="com.microsoft"),
        helper.make_node("Gather", ["both", "ids"], ["y"]),
        helper.make_node("Mul", ["x", "both"], ["z"]),
        helper.make_node("MatMulInteger", ["z", "matrix"], ["out"]),
        helper.make_node("MatMulNBits", ["z", "outside"], ["out2"], domain="com.microsoft"),
    ]
    graph = helper.make_graph(nodes, "step", [], [], [*tensors, outside])
    onnx.save(helper.make_model(graph), tmp_path / "step.onnx")
    step = manifest.Graph(1, "step.onnx", "tokens", "int64", "logits")
    assert peers("ours").bytes_per_token(tmp_path, step) == 24 + 16 + 400


def test_bytes_of_a_token_do_not_depend_on_the_graphs_for_prompts(tmp_path: Path, tiny: Path) -> None:
    counted = []
    for prefill in ((), (16,)):
        (folder,) = exporter.export(tiny, targets=["onnx-cpu"], precision="fp32", prefill=prefill, out=tmp_path)
        (step,) = (graph for graph in manifest.read(folder).graphs if graph.tokens == 1)
        counted.append(peers("ours").bytes_per_token(folder, step))
    weights = open_checkpoint(tiny)
    read = sum(weights[name].numel() * 4 for name in weights if name != "emb.weight" and "0.att.v" not in name)
    value = 128 * 128 * 4  # of layer 0, which "0.att.v" names too
    assert counted == pytest.approx([read + value] * 2, rel=0.01)


def test_a_precision_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(WrongCall, match="no precision fp12") as caught:
        peers("ours").Ours(tmp_path).prepare(tiny, "fp12")
    assert "fp32" in str(caught.value.hint)
