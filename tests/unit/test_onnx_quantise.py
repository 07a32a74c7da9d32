"""Quantised ONNX graphs against NumPy's reading of their weights, and what they cost; nothing here reads a manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from exporter import bundled, onnx_graph, ports, versions
from exporter.contract import Spelling
from exporter.model import Model, open_model
from exporter.models.layers import Linear
from exporter.passes import onnx_quantise, onnx_weights, torch_quantise
from exporter.passes.onnx_balance import balance
from exporter.passes.onnx_quantise import PRESETS, Preset, quantise
from exporter.passes.onnx_rounding import ROWS, Blocks, Channels, Latest, Rows, Storage
from tests.conftest import untraced
from tests.models import VERSIONS, case, loud, random_checkpoint
from validation.metrics import compare_step

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]

SMALL = {"layers": 1, "width": 64, "head_size": 32, "vocab": 101, "ffn": 160}
STEPS = 24


class Traced:
    """Step graphs of random models, traced once; every call gives a new copy with its weights unread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, tuple[Model, ir.Model]] = {}

    def __call__(self, version: str) -> tuple[Model, ir.Model]:
        if version not in self._made:
            path = self._folder / f"{version}.pth"
            torch.save(random_checkpoint(version, **SMALL, seed=5), path)
            self._made[version] = opened(path)
        model, graph = self._made[version]
        return model, graph.clone()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return Traced(tmp_path_factory.mktemp("traced"))


def opened(path: Path | None = None) -> tuple[Model, ir.Model]:
    model = open_model(path)
    with untraced():
        return model, onnx_graph.fixed(model.build(Spelling()), ports.own(model.spec), 1, opset=18)


@contextmanager
def no_progress(*_: object) -> Iterator[Callable[[int], None]]:
    yield lambda _: None


def save(graph: ir.Model, folder: Path) -> tuple[Path, int]:
    """The .onnx file in a new folder and the bytes of its data file."""
    folder.mkdir()
    onnx_weights.save_with_data(graph, folder / "step.onnx", "step.data", no_progress)
    return folder / "step.onnx", (folder / "step.data").stat().st_size


def logits(path: Path, model: Model, tokens: list[int]) -> Array:
    """What stepping through `tokens` gives, (T, V)."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ins, outs = ([port.name for port in ports] for ports in (session.get_inputs(), session.get_outputs()))
    state, found = [tensor.initial() for tensor in model.spec.state], []
    for token in tokens:
        one, *state = session.run(outs, dict(zip(ins, [np.array([token]), *state], strict=True)))
        found.append(one[0])
    return np.array(found)


def mean_kl(reference: Array, found: Array) -> float:
    return float(np.mean([compare_step(a, b).kl for a, b in zip(reference, found, strict=True)]))


def some_tokens(vocab: int) -> list[int]:
    return np.random.default_rng(2).integers(vocab, size=STEPS).tolist()


def readable(storage: Storage, made: dict[str, Array], k: int) -> Array:
    """The matrix (N, K) that rounded tensors stand for."""
    if isinstance(storage, Channels):
        return made["int8"].T.astype(np.float32) * made["scales"][:, None]
    scales, values = made["scales"], made[f"int{storage.bits}"].reshape(len(made["scales"]), -1)
    zeros: Array = made.get("zeros", np.full(scales.shape, 128, np.uint8))
    if storage.bits == 4:
        values, zeros = (np.stack([a & 15, a >> 4], -1).reshape(len(a), -1) for a in (values, zeros))
    spread = [np.repeat(a[:, : scales.shape[1]], storage.block, 1)[:, :k] for a in (scales, zeros.astype(np.float32))]
    return (values[:, :k] - spread[1]) * spread[0]


def product(storage: Storage, x: Array, weight: Array, bias: Array) -> Array:
    """The operator's answer, through the pass, to x (T, K) @ weight (N, K).T + bias."""
    graph = one_product(weight, bias)
    quantise(graph, Preset(storage, storage, storage, Rows(8, 32)))
    return run(graph, x)


def one_product(weight: Array, bias: Array | None = None, **attributes: object) -> ir.Model:
    held = [lazy("weight", weight), *([] if bias is None else [lazy("bias", bias)])]
    return one_node("Gemm", held, {"transB": 1, **attributes}, ir.DataType.FLOAT, 2)


def one_node(op: str, held: list[ir.Value], attributes: dict[str, Any], dtype: ir.DataType, rank: int) -> ir.Model:
    """A model of one node whose first free input is "x"; a lookup's is its second."""
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape([f"d{axis}" for axis in range(rank)]))
    node = ir.node(op, [held[0], x] if op == "Gather" else [x, *held], attributes)
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=held, opset_imports={"": 18}, name="one")
    return ir.Model(graph, ir_version=10)


def lazy(name: str, array: Array, reads: Counter[str] | None = None) -> ir.Value:
    def read() -> ir.Tensor[Any]:
        if reads is not None:
            reads[name] += 1
        return ir.Tensor(array, name=name)

    shape = ir.Shape(array.shape)
    tensor = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=shape, name=name)
    return ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)


def run(graph: ir.Model, x: Array) -> Array:
    return onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString()).run(None, {"x": x})[0]


def gaussian(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("k", [7, 33, 160])
@pytest.mark.parametrize("storage", [Channels(), Blocks(8, 32), Blocks(4, 32), Blocks(4, 128)], ids=str)
def test_rounding_is_off_by_half_a_step_at_most(storage: Storage, k: int) -> None:
    matrix = gaussian(ROWS + 3, k)
    matrix[5] = 0
    made = dict(storage.round(matrix))
    assert {name: (a.dtype, a.shape) for name, a in made.items()} == dict(storage.tensors(*matrix.shape))
    block = k if isinstance(storage, Channels) else storage.block
    steps = np.repeat(np.abs(made["scales"].reshape(len(matrix), -1)), block, 1)[:, :k]
    # a range that becomes -128 to 127 lacks half a step at its end, and a zero point is rounded too
    assert (np.abs(readable(storage, made, k) - matrix) <= 1.001 * steps).all()
    assert np.abs(readable(storage, made, k) - matrix).mean() < 0.3 * steps.mean()


@pytest.mark.parametrize("n, k", [(5, 7), (96, 33), (35, 160)])
@pytest.mark.parametrize("storage", [Channels(), Blocks(8, 32), Blocks(4, 32), Blocks(4, 128)], ids=str)
def test_a_product_is_that_of_the_rounded_matrix(storage: Storage, n: int, k: int) -> None:
    """Activations are whole numbers whose range makes every activation scale one, so that nothing else is rounded."""
    weight, bias = gaussian(n, k), gaussian(n, seed=1)
    low, high = (0, 255) if isinstance(storage, Channels) else (-127, 127)
    x = np.random.default_rng(3).integers(low, high + 1, size=(3, k)).astype(np.float32)
    x[:, :: 255 if isinstance(storage, Channels) else 16] = high
    x[:, 1] = 0 if low == 0 else x[:, 1]
    wanted = x @ readable(storage, dict(storage.round(weight)), k).T + bias
    np.testing.assert_allclose(product(storage, x, weight, bias), wanted, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("storage", [Rows(8, 32), Rows(4, 32)], ids=str)
def test_a_lookup_gives_the_rows_of_the_rounded_table(storage: Rows) -> None:
    table, ids = gaussian(50, 70), np.array([0, 49, 7])
    graph = one_node("Gather", [lazy("table", table)], {}, ir.DataType.INT64, 1)
    quantise(graph, Preset(Channels(), Channels(), Channels(), storage))
    wanted = readable(storage, dict(storage.round(table)), 70)[ids]
    np.testing.assert_allclose(run(graph, ids), wanted, atol=1e-6)


def test_a_matrix_stored_the_other_way_round_gives_the_same_product() -> None:
    weight, x = gaussian(12, 40), gaussian(3, 40, seed=1)
    graph = one_node("MatMul", [lazy("weight", np.ascontiguousarray(weight.T))], {}, ir.DataType.FLOAT, 2)
    quantise(graph, PRESETS["int4"])
    np.testing.assert_array_equal(run(graph, x), product(Blocks(4, 32), x, weight, np.zeros(12, np.float32)))


@pytest.mark.parametrize(
    "graph, reason",
    [
        (one_node("Gather", [lazy("t", gaussian(9, 33))], {}, ir.DataType.INT64, 1), onnx_quantise.UNEVEN),
        (one_node("MatMul", [lazy("t", gaussian(2, 8, 8))], {}, ir.DataType.FLOAT, 3), onnx_quantise.UNSUITED),
        (one_product(gaussian(8, 8), alpha=2.0), onnx_quantise.UNSUITED),
        (one_product(gaussian(8, 8), gaussian(3, 8)), onnx_quantise.UNSUITED),
        (one_node("Mul", [lazy("t", gaussian(8, 8))], {}, ir.DataType.FLOAT, 2), onnx_quantise.ELEMENTWISE),
        (one_node("Mul", [lazy("t", gaussian(1, 1, 8))], {}, ir.DataType.FLOAT, 3), onnx_quantise.VECTORS),
    ],
)
def test_what_no_operator_takes_stays_float_and_says_why(graph: ir.Model, reason: str) -> None:
    kept = quantise(graph, Preset(Channels(), Channels(), Channels(), Rows(4, 32)))
    assert reason in {each.reason for each in kept}
    assert [node.domain for node in graph.graph] == [""]


def test_weights_are_read_once_and_only_when_they_are_written(traced: Traced) -> None:
    _, graph = traced("7")
    reads: Counter[str] = Counter()
    for name, held in graph.graph.initializers.items():
        if isinstance(held.const_value, ir.LazyTensor):
            held.const_value = lazy(name, held.const_value.numpy(), reads).const_value
    quantise(graph, PRESETS["int4"])
    assert not reads
    for held in graph.graph.initializers.values():
        held.const_value.numpy()
    ffn = {name for name in reads if ".ffn.key." in name or ".ffn.value." in name}
    assert {reads[name] for name in ffn} == {2}  # once for the factors between the two
    assert {reads[name] for name in reads if name not in ffn} == {1}


def test_nothing_is_held_once_all_tensors_of_a_matrix_were_taken() -> None:
    latest, made = Latest(), []

    def make() -> dict[str, Array]:
        made.append(1)
        return {"a": np.zeros(1), "b": np.ones(1)}

    latest.take("one", "a", make), latest.take("one", "b", make)
    assert len(made) == 1 and not latest._left
    latest.take("two", "a", make), latest.take("one", "b", make)
    assert len(made) == 3 and set(latest._left) == {"a"}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_runs_close_to_float_and_keeps_no_matrix(version: str, traced: Traced, tmp_path: Path) -> None:
    model, graph = traced(version)
    tokens = some_tokens(model.spec.vocab)
    path, _ = save(graph, tmp_path / "fp32")
    reference = logits(path, model, tokens)
    for name, bound in (("int8", 1e-3), ("int4", 4e-2)):
        _, graph = traced(version)
        kept = quantise(graph, PRESETS[name])
        assert {each.reason for each in kept} <= {onnx_quantise.VECTORS, onnx_quantise.ELEMENTWISE}
        floats = [held for held in graph.graph.initializers.values() if ".scales" not in held.name]
        assert all(held.dtype != ir.DataType.FLOAT or held.const_value.size <= SMALL["ffn"] for held in floats)
        path, _ = save(graph, tmp_path / name)
        assert mean_kl(reference, logits(path, model, tokens)) < bound


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_quantised_graph_is_the_float_graph_with_rounded_weights(name: str, traced: Traced, tmp_path: Path) -> None:
    """What is left between the two is the rounding of activations."""
    model, graph = traced("7")
    preset, tokens = PRESETS[name], some_tokens(model.spec.vocab)
    for key, held in graph.graph.initializers.items():
        if isinstance(held.const_value, ir.LazyTensor) and len(held.shape) == 2 and ".r_k" not in key:
            storage, matrix = (preset.tables if key == "emb" else preset.of(key)), held.const_value.numpy()
            held.const_value = lazy(key, readable(storage, dict(storage.round(matrix)), matrix.shape[1])).const_value
    emulated = logits(save(graph, tmp_path / "emulated")[0], model, tokens)
    _, graph = traced("7")
    quantise(graph, preset)
    assert mean_kl(emulated, logits(save(graph, tmp_path / "quantised")[0], model, tokens)) < 2e-4


def test_the_file_holds_little_beside_the_values_and_their_scales(tmp_path: Path) -> None:
    path = tmp_path / "wide.pth"
    torch.save(random_checkpoint("5.2", layers=1, width=256, head_size=64, vocab=512, ffn=1024), path)
    model, graph = opened(path)
    tables = 512 * 256
    products = model.facts().parameters - tables
    for name, bits in (("int8", 8), ("int4", 4 + 36 / 32), ("int4-b128", 4 + 36 / 128)):
        quantised = graph.clone()
        quantise(quantised, PRESETS[name])
        assert save(quantised, tmp_path / name)[1] < 1.15 * (products * bits + tables * 9) / 8


def test_graphs_of_any_number_of_tokens_have_the_same_weights(traced: Traced) -> None:
    model, step = traced("6")
    module, named = model.build(Spelling()), ports.own(model.spec)
    with untraced():
        several = onnx_graph.fixed(module, named, 3, opset=18)
        joined, _ = onnx_graph.joined(module, named, [8], opset=18)
    for graph in (step, several, joined):
        quantise(graph, PRESETS["int4"])
    weights = {name: held.const_value for name, held in step.graph.initializers.items() if "weight" in name}
    assert len(weights) > 40
    for other in (several, joined):
        found = other.graph.initializers
        assert {name for name in found if "weight" in name} == set(weights)
        assert all(found[name].const_value.tobytes() == weights[name].tobytes() for name in weights)


@pytest.mark.parametrize("version", VERSIONS)
def test_low_rank_pairs_are_told_from_other_matrices_whatever_their_names(version: str) -> None:
    weights, file = case(version)[0], versions.load(version)
    module = file.build(file.spec(version, weights, 64e-5), weights, Spelling())
    linears = [(f"{path}.weight", part.weight) for path, part in module.named_modules() if isinstance(part, Linear)]
    for name, weight in linears:
        if name != torch_quantise.HEAD:
            low = min(weight.shape) < 48  # half of what all others have at least
            assert (PRESETS["int4"].of(name) == Channels()) == low, name
            reason = torch_quantise.grid_for(name, 96, torch_quantise.PRESETS["8da4w"])[1]
            assert (reason == torch_quantise.SMALL) == low, name


def test_a_loud_channel_costs_nothing_once_it_is_balanced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph = opened(loud(tmp_path))
    tokens = [byte + 1 for byte in bundled.HELDOUT.read_bytes()[:100]]
    reference = logits(save(graph.clone(), tmp_path / "fp32")[0], model, tokens)
    balanced = graph.clone()
    balance(balanced)
    assert (logits(save(balanced, tmp_path / "balanced")[0], model, tokens) == reference).all()
    kl = {}
    for name, pass_ in (("with", balance), ("without", lambda _: {})):
        monkeypatch.setattr(onnx_quantise, "balance", pass_)
        quantised = graph.clone()
        quantise(quantised, PRESETS["int8"])
        kl[name] = mean_kl(reference, logits(save(quantised, tmp_path / name)[0], model, tokens))
    assert kl["with"] < 2e-3 < 2e-2 < kl["without"], kl
