"""Rockchip's toolkit: what is refused before it, what its simulator says of our graphs, and of one it gets wrong."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from exporter import environments, export, onnx_graph, ports
from exporter.contract import Spelling
from exporter.model import open_model
from exporter.passes import onnx_rows
from exporter.synth import synth
from runtimes import manifest, registry, rknn
from runtimes.environments.rknn import ENVIRONMENT
from runtimes.errors import Missing, WrongCall
from runtimes.rknn import toolkit
from tests.requirements import require
from tests.unit.small_exports import SIZES, checkpoint, exported
from validation import validate
from validation.outcome import Outcome, Parity

pytestmark = pytest.mark.slow

FOLDER, MISSING = ENVIRONMENT.folder, rknn.missing()  # before the cache becomes that of the test run
HEADS, SIZE = 2, 64
LOG = """
D RKNN: [12:17:34.219] ID   OpType             DataType Target InputShape             OutputShape   Cycles(DDR/NPU)
D RKNN: [12:17:34.219] 0    InputOperator      FLOAT16  CPU    \\                      (1,128)       0/0/0
D RKNN: [12:17:34.219] 15   ConvTanh           FLOAT16  NPU    (1,128,1,1)            (1,160,1,1)   1756/640/1756
D RKNN: [12:17:34.219] 21   Exp                FLOAT16  CPU    (1,128,1,1)            (1,128,1,1)   0/0/0
D RKNN: [12:17:34.219] 22   Mul                FLOAT16  NPU    (1,128,1,1),(1,1,1,1)  (1,128,1,1)   0/0/0
D RKNN: [12:17:34.219] 49   OutputOperator     FLOAT16  CPU    (1,2,64,64)            \\             0/0/0
E RKNN: [12:17:34.129] Unkown op target: 0
"""
DRIVER = """
import sys
import numpy as np
from pathlib import Path
from runtimes.rknn import toolkit

folder = Path(sys.argv[1])
for name in sys.argv[2:]:
    source, made = folder / f"{name}.onnx", folder / f"{name}.rknn"
    toolkit.convert(source, made, soc="rk3588", checked=False)
    built = toolkit.simulate(source, made, soc="rk3588")
    outputs = built(dict(np.load(folder / "inputs.npz")) | {"state": np.load(folder / f"{name}.npy")})
    np.savez(folder / f"{name}.npz", *outputs)
"""


@pytest.fixture(scope="module")
def environment(own_cache: Path) -> Iterator[None]:
    """The user's environment, seen from the cache of the test run."""
    require("rknn", MISSING)
    place = own_cache / "rwkv-export" / "environments" / "rknn"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(FOLDER)
    yield
    place.unlink()


@pytest.fixture(scope="module")
def half(environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rknn")
    path = synth("7", layers=1, width=64, vocab=257, out=folder / "small.pth")
    (made,) = export(path, targets=["rknn"], out=folder)
    return made


@pytest.fixture(scope="module")
def row(half: Path) -> Parity:
    (made,) = validate([half], checkpoint=half.parent / "small.pth", steps=16).parity
    return made


def recurrence(*lead: int) -> onnx.ModelProto:
    """S' = S diag(w) - (S kk) b^T + v k^T and y = S' r by products, with `lead` axes before the heads."""
    shapes = {"w": (HEADS, 1, SIZE), "kk": (HEADS, SIZE, 1), "b": (HEADS, 1, SIZE), "v": (HEADS, SIZE, 1)}
    shapes |= {"k": (HEADS, 1, SIZE), "r": (HEADS, SIZE, 1)}
    constants = [numpy_helper.from_array(np.array([*lead, *shape]), f"{name}.shape") for name, shape in shapes.items()]
    nodes = [helper.make_node("Reshape", [name, f"{name}.shape"], [f"{name}.heads"]) for name in shapes]
    for kind, *operands, made in (
        ("MatMul", "state", "kk.heads", "read"),
        ("Mul", "state", "w.heads", "decayed"),
        ("MatMul", "read", "b.heads", "removed"),
        ("MatMul", "v.heads", "k.heads", "added"),
        ("Sub", "decayed", "removed", "left"),
        ("Add", "left", "added", "next"),
        ("MatMul", "next", "r.heads", "y.heads"),
        ("Reshape", "y.heads", "y.shape", "y"),
    ):
        nodes.append(helper.make_node(kind, operands, [made]))
    constants.append(numpy_helper.from_array(np.array([1, HEADS * SIZE]), "y.shape"))
    flat, square = [1, HEADS * SIZE], [*lead, HEADS, SIZE, SIZE]
    info = helper.make_tensor_value_info
    inputs = [info(name, TensorProto.FLOAT, flat) for name in shapes] + [info("state", TensorProto.FLOAT, square)]
    outputs = [info("y", TensorProto.FLOAT, flat), info("next", TensorProto.FLOAT, square)]
    graph = helper.make_graph(nodes, "recurrence", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize(("lead", "right"), [((), False), ((1,), True)])
def test_a_product_of_rank_3_is_refused_before_the_compiler_sees_it(
    tmp_path: Path, lead: tuple[int, ...], right: bool
) -> None:
    onnx.save(recurrence(*lead), tmp_path / "graph.onnx")
    found = toolkit.products(tmp_path / "graph.onnx")
    assert set(found) == {"read", "removed", "added", "y.heads"}
    if right:
        toolkit.check_products(found)
        return
    with pytest.raises(WrongCall, match="silently miscomputes products of rank 3, and read is one"):
        toolkit.check_products(found)
    with pytest.raises(WrongCall, match="rank 3"):
        toolkit.convert(tmp_path / "graph.onnx", tmp_path / "graph.rknn", soc="rk3588")


def test_the_simulator_is_wrong_on_rank_3_and_right_on_rank_4(environment: None, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    inputs = {name: 0.3 * generator.standard_normal((1, HEADS * SIZE), np.float32) for name in ("w", "kk", "b")}
    inputs |= {name: 0.3 * generator.standard_normal((1, HEADS * SIZE), np.float32) for name in ("v", "k", "r")}
    np.savez(tmp_path / "inputs.npz", **inputs)
    state = 0.3 * generator.standard_normal((HEADS, SIZE, SIZE), np.float32)
    wanted = {}
    for name, lead in (("three", ()), ("four", (1,))):
        onnx.save(recurrence(*lead), tmp_path / f"{name}.onnx")
        np.save(tmp_path / f"{name}.npy", state.reshape(*lead, *state.shape))
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
        wanted[name] = session.run(None, inputs | {"state": state.reshape(*lead, *state.shape)})
    (tmp_path / "driver.py").write_text(DRIVER)
    (python, *_), env = rknn.process("")
    command = [python, str(tmp_path / "driver.py"), str(tmp_path), *wanted]
    subprocess.run(command, env=env, check=True, capture_output=True)
    errors = {}
    for name, expected in wanted.items():
        with np.load(tmp_path / f"{name}.npz") as made:
            pairs = zip((made[key] for key in made.files), expected, strict=True)
            errors[name] = max(float(np.abs(got.reshape(want.shape) - want).max()) for got, want in pairs)
    assert errors["four"] < 2e-3
    assert errors["three"] > 0.5  # of 1.4, so nobody could take it for rounding


def test_the_simulator_agrees_with_the_checkpoint_as_well_as_float16_can(row: Parity) -> None:
    assert row.outcome is Outcome.PASS, row.reasons
    assert (row.identity.observed, row.identity.evidence) == ("rknn:simulator", "emulated")
    assert row.free is not None
    assert row.free.top1 == 1
    assert 1e-4 < row.free.worst < 1e-2


def test_what_runs_beside_the_npu_is_told(half: Path, row: Parity) -> None:
    nodes = row.identity.nodes
    assert nodes["NPU"] > 50
    assert {name for name in nodes if name != "NPU"} == {"CPU Exp", "CPU Div", "CPU Reshape"}
    assert f"NPU {nodes['NPU']}, CPU " in (half / "README.md").read_text(encoding="utf-8")


def test_projections_in_eight_bits_are_built_again_from_what_the_artifact_has(half: Path, tmp_path: Path) -> None:
    path = synth("7", layers=1, width=64, vocab=257, out=tmp_path / "small.pth")
    (made,) = export(path, targets=["rknn"], precision="w8a8", options={"soc": "rk3576"}, out=tmp_path)
    files = {"README.md", "calibration.json", "decode.onnx", "decode.rknn", "embedding.bin", "manifest.json"}
    assert {file.name for file in made.iterdir()} == files  # and no pickle of the toolkit's
    (row,) = validate([made], checkpoint=path, steps=4, quality_tokens=1).parity
    assert row.identity.observed == "rknn:simulator"
    assert row.free is not None
    assert 1e-2 < row.free.worst < 1


def test_eight_bits_have_no_graphs_of_several_tokens(half: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongCall, match="ranges of their own"):
        export(half.parent / "small.pth", targets=["rknn"], precision="w8a8", prefill=[4], out=tmp_path)


def test_a_file_that_another_graph_was_compiled_to_is_no_pass(half: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    content = np.fromfile(half / "decode.rknn", np.uint8)
    content.tofile(one)
    content[::50] += 1
    content.tofile(other)
    assert toolkit.alike(half / "decode.rknn", one)
    assert not toolkit.alike(half / "decode.rknn", other)


def test_the_compilers_table_is_read() -> None:
    assert toolkit.units(LOG) == {"NPU": 2, "CPU Exp": 1}


@pytest.mark.parametrize("version", ["7a"])
def test_the_graph_with_its_lookups_outside_computes_the_same(version: str, tmp_path: Path) -> None:
    import onnx_ir as ir

    path = tmp_path / "small.pth"
    torch.save(checkpoint(version, 2), path)
    model = open_model(path)
    module, named = model.build(Spelling()), ports.own(model.spec)
    feeds = {}
    for name in ("whole", "lifted"):
        made = onnx_graph.fixed(module, named, 3, opset=18)
        if name == "lifted":
            tables = onnx_rows.lift(made)
            width = onnx_rows.write_table(tables, tmp_path / "table", "float32")
        for value in made.graph.initializers.values():
            value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)  # type: ignore[union-attr]
        onnx.save(ir.to_proto(made), tmp_path / f"{name}.onnx")
    table = np.fromfile(tmp_path / "table", "<f4").reshape(SIZES["vocab"], width)
    ids = np.array([5, 32, 0])
    feeds = {"whole": {"tokens": ids}, "lifted": {onnx_rows.ROW: table[ids]}}
    state = {tensor.input: np.full(tensor.shape, 0.25, np.float32) for tensor in named.state}
    made = [onnxruntime.InferenceSession(tmp_path / f"{name}.onnx").run(None, feeds[name] | state) for name in feeds]
    for one, other in zip(*made, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_without_its_environment_everything_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(type(ENVIRONMENT), "unfit", lambda self: None)
    sentence = "the rknn environment is absent, run `rwkv-export setup rknn`"
    with pytest.raises(Missing, match=sentence):
        export(targets=["rknn"], out=tmp_path)
    assert registry.load("rknn").missing("simulator") == sentence
    assert "rknn-toolkit-lite2" in str(registry.load("rknn").missing("npu"))

    folder = exported("7", "onnx-cpu", tmp_path)
    document = manifest.read(folder)
    target = replace(document.target, name="rknn", runtime="rknn", device="simulator", options={"soc": "rk3588"})
    manifest.write(replace(document, target=target), folder)
    for results in (validate([folder], checkpoint=tmp_path / "7.pth"), validate([folder], on=["rknn:npu"])):
        (row,) = results.parity
        assert row.outcome is Outcome.MISSING
    assert environments.known()["rknn"] is ENVIRONMENT
