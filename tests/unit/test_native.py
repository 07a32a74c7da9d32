"""The native kernels: what they compute on every instruction set there is here, and what they say where they cannot."""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtimes.backends import ort
from runtimes.contract import Session
from runtimes.errors import Missing
from runtimes.manifest import open_artifact
from runtimes.native import build
from runtimes.native.rewrite import DOMAIN, rewrite
from tests.conftest import Exports

pytestmark = pytest.mark.slow

compiled = pytest.mark.skipif(build.missing() is not None, reason="no C++ compiler")

Array = npt.NDArray[Any]
SETS = {"native": (), "plain": ("-DPLAIN",)}
if platform.machine() == "x86_64":
    SETS["avx2"] = ("-march=x86-64-v3",)
SIZES = [(32, 16), (768, 33), (96, 7), (200, 50), (333, 48)]  # K, N
ROWS = (1, 2, 5, 16, 17, 64)


@dataclass(frozen=True)
class Stored:
    """A matrix in com.microsoft's way: the operator, its initializers by name and its attributes."""

    operator: str
    inputs: dict[str, Array | None]
    attributes: dict[str, int]
    matrix: Array  # (K, N), what it stands for

    def save(self, path: Path, *, bias: Array | None) -> Path:
        """A model of this one product."""
        (k, n) = self.matrix.shape
        held = self.inputs | {"bias": bias}
        names = ["x", *(name if value is not None else "" for name, value in held.items())]
        node = helper.make_node(self.operator, names, ["y"], domain="com.microsoft", **self.attributes)
        tensors = [numpy_helper.from_array(value, name) for name, value in held.items() if value is not None]
        x, y = (port(name, "M", size) for name, size in (("x", k), ("y", n)))
        return save(path, [node], [x], [y], tensors)


def port(name: str, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], tensors: list[Any]) -> Path:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "one", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def blocks(rng: np.random.Generator, k: int, n: int, *, bits: int, block: int, zeros: bool = False) -> Stored:
    count = -(-k // block)
    codes = rng.integers(0, 2**bits, (n, count, block), dtype=np.uint8)
    scales = halves(rng, n, count)
    points = rng.integers(0, 16, (n, count + count % 2), dtype=np.uint8)
    point = points[:, :count] if zeros else np.full((n, count), 2 ** (bits - 1))
    matrix = ((codes.astype(float) - point[:, :, None]) * scales[:, :, None]).reshape(n, -1)[:, :k].T
    packed = codes if bits == 8 else codes[:, :, ::2] | codes[:, :, 1::2] << 4
    held = {"codes": packed, "scales": scales, "zeros": points[:, ::2] | points[:, 1::2] << 4 if zeros else None}
    attributes = {"K": k, "N": n, "bits": bits, "block_size": block}
    return Stored("MatMulNBits", {**held, "order": None}, attributes, matrix)


def columns(rng: np.random.Generator, k: int, n: int) -> Stored:
    codes = rng.integers(-128, 128, (k, n), dtype=np.int8)
    scales = halves(rng, n)
    held = {"codes": codes, "scales": scales, "zeros": np.zeros(n, np.int8)}
    return Stored("DynamicQuantizeMatMul", held, {}, codes * scales.astype(float))


def halves(rng: np.random.Generator, *shape: int) -> Array:
    """Scales of either sign that half precision holds exactly."""
    return (rng.standard_normal(shape) * 0.01).astype(np.float16).astype(np.float32)


KINDS: dict[str, Callable[..., Stored]] = {
    "int4-b32": lambda *a: blocks(*a, bits=4, block=32),
    "int4-b64": lambda *a: blocks(*a, bits=4, block=64),
    "int4-b128": lambda *a: blocks(*a, bits=4, block=128),
    "int4-zeros": lambda *a: blocks(*a, bits=4, block=32, zeros=True),
    "int4-zeros-b128": lambda *a: blocks(*a, bits=4, block=128, zeros=True),
    "int8-b32": lambda *a: blocks(*a, bits=8, block=32),
    "int8-b512": lambda *a: blocks(*a, bits=8, block=512),
    "int8": columns,
}


def opened(path: Path, flags: tuple[str, ...] = (), version: str = "7") -> Any:
    """A session of the rewritten model, in which every product is ours."""
    model = rewrite(path, version)
    assert not [node for node in onnx.load_from_string(model).graph.node if node.domain == "com.microsoft"]
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(build.library(*flags)))
    return onnxruntime.InferenceSession(model, options)


@compiled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instructions", SETS)
def test_products_of_activations_that_need_no_rounding_are_exact(tmp_path: Path, instructions: str, kind: str) -> None:
    rng = np.random.default_rng(5)
    for k, n in SIZES:
        stored = KINDS[kind](rng, k, n)
        bias = rng.standard_normal(n).astype(np.float32) if n % 2 else None
        session = opened(stored.save(tmp_path / "one.onnx", bias=bias), SETS[instructions])
        for rows in ROWS:
            x = rng.integers(-127, 128, (rows, k)).astype(np.float32)
            x[:, ::32] = 127  # the largest of every group, so that its scale is a power of two
            x *= 2.0 ** rng.integers(-6, 6, (rows, 1)).astype(np.float32)
            (y,) = session.run(None, {"x": x})
            true = x.astype(float) @ stored.matrix
            sizes = np.abs(x).astype(float) @ np.abs(stored.matrix)
            np.testing.assert_array_less(np.abs(y - true - (0 if bias is None else bias)), 2e-6 * sizes + 1e-6)


@compiled
@pytest.mark.parametrize("kind", KINDS)
def test_rounding_activations_costs_at_most_half_a_step_each(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(6)
    k, n = 333, 50
    stored = KINDS[kind](rng, k, n)
    x = (rng.standard_normal((9, k)) * 10 ** rng.uniform(-3, 3, (9, 1))).astype(np.float32)
    (y,) = opened(stored.save(tmp_path / "one.onnx", bias=None)).run(None, {"x": x})
    groups = [slice(start, start + 32) for start in range(0, k, 32)]
    steps = [np.abs(x[:, g]).max(1, keepdims=True) / 127 * np.abs(stored.matrix[g]).sum(0) for g in groups]
    np.testing.assert_array_less(np.abs(y - x.astype(float) @ stored.matrix), 0.5001 * np.sum(steps, axis=0))


@compiled
def test_scales_of_any_size_are_kept_to_half_precision(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    made = blocks(rng, 64, 16, bits=8, block=32)
    for size in (1e-30, 1e-6, 1.0, 1e30):
        scales = (rng.uniform(0.5, 1.0, (16, 2)) * size).astype(np.float32)
        stored = Stored(made.operator, made.inputs | {"scales": scales}, made.attributes, made.matrix)
        x = np.zeros((1, 64), np.float32)
        x[0, 0] = 1.0
        (y,) = opened(stored.save(tmp_path / "one.onnx", bias=None)).run(None, {"x": x})
        codes = made.inputs["codes"]
        assert codes is not None
        np.testing.assert_allclose(y[0], (codes[:, 0, 0].astype(float) - 128) * scales[:, 0], rtol=2**-11)


def recurrence(path: Path, heads: int, size: int) -> Path:
    names = ["r", "log_w", "k", "v", "kk", "b"]
    vectors = [port(name, "T", heads, size) for name in names]
    before, after = (port(name, 1, heads, size, size) for name in ("s", "out"))
    node = helper.make_node("Recurrence7", [*names, "s"], ["y", "out"], domain=DOMAIN)
    return save(path, [node], [*vectors, before], [port("y", "T", heads, size), after], [])


@compiled
@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("size", [13, 32, 64, 128])
def test_the_recurrence_of_version_7_is_that_of_a_loop_in_double_precision(
    tmp_path: Path, instructions: str, size: int
) -> None:
    rng = np.random.default_rng(8)
    session = opened(recurrence(tmp_path / "one.onnx", 3, size), SETS[instructions])
    for tokens in (1, 2, 16, 17, 40):
        r, log_w, k, v, kk, b = rng.standard_normal((6, tokens, 3, size))
        log_w = -np.abs(log_w) * rng.choice([0.1, 1.0, 40.0], log_w.shape)
        kk /= np.linalg.norm(kk, axis=-1, keepdims=True)
        b = kk * rng.uniform(0, 1, b.shape)
        state = rng.standard_normal((3, size, size))
        named = zip(("r", "log_w", "k", "v", "kk", "b", "s"), (r, log_w, k, v, kk, b, state[None]), strict=True)
        y, after = session.run(None, {name: value.astype(np.float32) for name, value in named})
        true = np.empty_like(r)
        for t in range(tokens):
            removed = np.einsum("hvk,hk->hv", state, kk[t])
            state = state * np.exp(log_w[t])[:, None] - removed[:, :, None] * b[t][:, None]
            state = state + v[t][:, :, None] * k[t][:, None]
            true[t] = np.einsum("hvk,hk->hv", state, r[t])
        np.testing.assert_allclose(y, true, atol=3e-6 * np.abs(true).max())
        np.testing.assert_allclose(after[0], state, atol=3e-6 * np.abs(state).max())


def held() -> int:
    count: int = ctypes.CDLL(str(build.library())).rwkv_export_constants()
    return count


@compiled
def test_sessions_hold_equal_weights_once_and_give_them_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    one, other = (columns(rng, 64, 48) for _ in range(2))
    before = held()
    sessions = [opened(one.save(tmp_path / name, bias=None)) for name in ("a.onnx", "b.onnx")]
    assert held() == before + 1
    sessions.append(opened(other.save(tmp_path / "c.onnx", bias=None)))
    assert held() == before + 2
    x = rng.standard_normal((1, 64)).astype(np.float32)
    first, same, different = (session.run(None, {"x": x})[0] for session in sessions)
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, different)
    sessions.clear()
    gc.collect()
    assert held() == before


@compiled
def test_what_the_kernels_cannot_do_stays_with_onnx_runtime(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    small = blocks(rng, 64, 16, bits=4, block=16)
    shifted = columns(rng, 64, 16)
    assert shifted.inputs["zeros"] is not None
    shifted.inputs["zeros"][3] = 1
    for stored in (small, shifted):
        path = stored.save(tmp_path / "one.onnx", bias=None)
        assert [node.domain for node in onnx.load_from_string(rewrite(path, "7")).graph.node] == ["com.microsoft"]


def logits(session: Session, tokens: list[int], *, at_once: int) -> Array:
    """After a prompt of `at_once` tokens and after each of the rest."""
    step = session.prefill(tokens[:at_once], session.initial_state())
    rows = [step.logits]
    for token in tokens[at_once:]:
        step = session.step(token, step.state)
        rows.append(step.logits)
    return np.stack(rows)


@compiled
@pytest.mark.parametrize(("version", "precision"), [("7", "fp32"), ("7a", "int8"), ("6", "int4")])
def test_an_artifact_gives_the_logits_that_it_gives_without_the_kernels(
    exports: Exports, version: str, precision: str
) -> None:
    artifact = open_artifact(exports(version, "onnx-cpu", precision=precision, prefill=(16,)))
    plain, fused = (ort.open_session(artifact, device) for device in ("cpu", "cpu-fused"))
    assert fused.placement().observed == "ort:cpu-fused"
    assert fused.placement().nodes[DOMAIN] > 0
    tokens = np.random.default_rng(11).integers(0, 101, 40).tolist()
    expected, found = logits(plain, tokens, at_once=29), logits(fused, tokens, at_once=29)
    noise = {"fp32": 1e-5, "int8": 0.05, "int4": 0.05}[precision]
    assert np.sqrt(np.mean((found - expected) ** 2)) < noise * np.sqrt(np.mean(expected**2))
    np.testing.assert_allclose(logits(fused, tokens, at_once=1)[-1], found[-1], atol=noise * np.abs(found).max())


@compiled
def test_an_artifact_without_anything_for_the_kernels_says_that_they_did_not_run(exports: Exports) -> None:
    artifact = open_artifact(exports("7", "onnx-cpu"))
    plain, fused = (ort.open_session(artifact, device) for device in ("cpu", "cpu-fused"))
    assert fused.placement().observed == "ort:cpu"
    tokens = [3, 1, 4, 1, 5]
    np.testing.assert_array_equal(logits(plain, tokens, at_once=1), logits(fused, tokens, at_once=1))


def test_without_a_compiler_the_device_is_missing_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in build.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", "")
    assert "no C++ compiler" in str(ort.missing("cpu-fused"))
    assert ort.missing("cpu") is None
    with pytest.raises(Missing, match=r"no C\+\+ compiler") as raised:
        build.library()
    assert "ort:cpu" in str(raised.value.hint)


def test_a_named_compiler_that_is_not_there_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_EXPORT_CXX", "/nowhere/c++ -O2")
    assert "'/nowhere/c++'" in str(ort.missing("cpu-fused"))


@compiled
def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(Missing, match=r"cannot compile the native kernels: .*error.*nowhere\.h"):
        build.library("-include", "/nowhere.h")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@compiled
def test_the_library_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.library()
    made = path.stat().st_mtime_ns
    assert build.library() == path
    assert path.stat().st_mtime_ns == made
    assert build.library("-DPLAIN") != path
