"""The QNN target and its emulator: every operator in the delegate, the checkpoint's numbers, and what is missing."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from exporter import pipeline
from exporter.passes.pt2e import quantised
from exporter.passes.qnn_rewrites import keep_activations_apart, outer_products_as_matmuls
from exporter.progress import silent
from exporter.quiet import quiet
from exporter.synth import synth
from exporter.targets import executorch_qnn
from runtimes import manifest, qnn
from runtimes.backends import pte
from runtimes.contract import Artifact
from runtimes.errors import Missing, WrongCall
from runtimes.qnn import device
from runtimes.qnn.chips import CHIPS
from tests.requirements import require
from validation.outcome import Outcome, Parity
from validation.runner import validate

pytestmark = pytest.mark.slow

STEPS = 8
ROOT = Path(__file__).parents[2]


class Made(NamedTuple):
    """An artifact, the module its delegate was given, and how it compares with its checkpoint."""

    folder: Path
    module: GraphModule
    row: Parity


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synth("7", layers=2, width=128, vocab=257, out=tmp_path_factory.mktemp("qnn") / "small.pth")


def make(checkpoint: Path, precision: str) -> Made:
    require("qnn", qnn.missing())
    given: list[GraphModule] = []

    def module_of(*args: Any) -> GraphModule:
        given.append(original(*args))
        return given[-1]

    original = executorch_qnn.module_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executorch_qnn, "module_of", module_of)
        patch.setattr(executorch_qnn, "CALIBRATION", 48)
        (folder,) = pipeline.export(checkpoint, targets=["executorch-qnn"], precision=precision, out=checkpoint.parent)
    (row,) = validate([folder], checkpoint=checkpoint, steps=STEPS, quality_tokens=1).parity
    return Made(folder, given[0], row)


ALONE = """
import sys
from pathlib import Path
import exporter
exporter.export(sys.argv[1], targets=["executorch-qnn"], precision="fp16", out=Path(sys.argv[1]).parent / "alone")
import onnxruntime
"""


def test_onnx_runtime_is_loaded_after_a_program_was_compiled(checkpoint: Path) -> None:
    require("qnn", qnn.missing())
    done = subprocess.run([sys.executable, "-c", ALONE, checkpoint], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]


@pytest.fixture(scope="module")
def half(checkpoint: Path) -> Iterator[Made]:
    yield make(checkpoint, "fp16")


@pytest.fixture(scope="module")
def coarse(checkpoint: Path) -> Iterator[Made]:
    smaller = synth("7", layers=1, width=64, vocab=257, out=checkpoint.with_name("smaller.pth"))
    yield make(smaller, "16a8w")


def test_the_whole_step_is_one_delegate(half: Made) -> None:
    coverage = half.row.identity.coverage
    assert coverage is not None
    assert (coverage.delegates, coverage.outside) == ({"QnnBackend": 1}, {})
    assert "aten.embedding" in coverage.inside
    assert half.row.identity.nodes == {"QnnBackend": 1}


def test_the_emulator_agrees_with_the_checkpoint_as_well_as_float16_can(half: Made) -> None:
    assert half.row.outcome is Outcome.PASS, half.row.reasons
    assert (half.row.identity.observed, half.row.identity.evidence) == ("pte:htp-emulator", "emulated")
    assert half.row.free is not None
    assert 1e-4 < half.row.free.worst < 1e-2  # 2e-2 with activations that are fused into products
    assert max(half.row.free.state_rel.values()) < 1e-2


def test_eight_bit_weights_pass(coarse: Made) -> None:
    assert coarse.row.outcome is Outcome.PASS, coarse.row.reasons
    coverage = coarse.row.identity.coverage
    assert coverage is not None
    assert (coverage.delegates, coverage.outside) == ({"QnnBackend": 1}, {})


@torch.no_grad()
def test_the_emulator_computes_what_the_quantised_module_says(coarse: Made) -> None:
    artifact = manifest.open_artifact(coarse.folder)
    session = pte.open_session(artifact, "htp-emulator")
    state = session.initial_state()
    for token in (5, 80, 33, 250):
        tensors = [torch.from_numpy(array) for array in session.read_state(state).values()]
        logits, *new = coarse.module(torch.tensor([token], dtype=torch.int32), *tensors)
        step = session.step(token, state)
        state = step.state
        np.testing.assert_allclose(step.logits, logits[0].numpy(), atol=1e-2)
        for got, expected in zip(session.read_state(state).values(), new, strict=True):
            np.testing.assert_allclose(got, expected.numpy(), atol=2e-2)
    session.close()


def test_a_state_with_a_huge_fill_is_refused_in_sixteen_bits(tmp_path: Path) -> None:
    require("qnn", qnn.missing())
    path = synth("4", layers=1, width=64, vocab=257, out=tmp_path / "four.pth")
    with pytest.raises(WrongCall, match=r"16a8w cannot hold blocks\.0\.att\.pp, which starts at -1e\+30"):
        pipeline.export(path, targets=["executorch-qnn"], precision="16a8w", out=tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_every_processor_is_one_that_the_toolchain_knows() -> None:
    from executorch.backends.qualcomm.serialization.qc_schema import HtpArch, QcomChipset, _soc_info_table

    known = {chip.name.lower(): _soc_info_table[chip].htp_info.htp_arch for chip in QcomChipset if chip.value}
    without_half = {name for name, arch in known.items() if arch <= HtpArch.V68}
    numbers = {chip.name.lower(): chip.value for chip in QcomChipset}
    assert set(executorch_qnn.SOCS) == set(known) - without_half | {"xelite"}
    assert {name: numbers[name] for name in CHIPS if name != "xelite"} | {"xelite": numbers["sc8380xp"]} == CHIPS


class Activations(nn.Module):
    """Every activation that QNN would fuse into a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.linear(x)
        return torch.tanh(y), torch.sigmoid(y), nn.functional.silu(y)


def test_no_activation_follows_a_linear_and_each_is_what_it_was() -> None:
    x = torch.linspace(-30, 30, 64).reshape(8, 8)
    module = torch.export.export(Activations(), (x,)).module(check_guards=False)
    before = module(x)
    apart = keep_activations_apart(module)
    fed = {node.args[0].target for node in apart.graph.nodes if node.target is torch.ops.aten.tanh.default}
    assert fed == {torch.ops.aten.neg.default, torch.ops.aten.mul.Tensor}
    assert not [node for node in apart.graph.nodes if "sig" in str(node.target) or "silu" in str(node.target)]
    for ours, theirs in zip(apart(x), before, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


class Products(nn.Module):
    """An outer product either way round, and products that repeat one factor or none."""

    def forward(self, column: Tensor, row: Tensor, matrix: Tensor) -> tuple[Tensor, ...]:
        return column * row, row * column, matrix * row, column * matrix, matrix * matrix, matrix * 2.0


def test_outer_products_and_nothing_else_become_matmuls() -> None:
    given = (torch.randn(1, 2, 4, 1), torch.randn(1, 2, 1, 3), torch.randn(1, 2, 4, 3))
    module = torch.export.export(Products(), given).module(check_guards=False)
    before = module(*given)
    rewritten = outer_products_as_matmuls(module)
    targets = [node.target for node in rewritten.graph.nodes if node.op == "call_function"]
    assert targets.count(torch.ops.aten.matmul.default) == 2
    assert targets.count(torch.ops.aten.mul.Tensor) == 4
    for ours, theirs in zip(rewritten(*given), before, strict=True):
        torch.testing.assert_close(ours, theirs)


class Counter(nn.Module):
    """A state that grows with every token, beyond what one call shows."""

    def forward(self, ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        new = state + torch.full((1, 4), 1.0) * ids.sum()
        return new * 1.0, new


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 3])
def test_calibration_sees_the_state_that_a_text_leads_to(size: int) -> None:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    inputs = (torch.ones(size, dtype=torch.int32), torch.zeros(1, 4))
    module = torch.export.export(Counter(), inputs).module(check_guards=False)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    with quiet():
        made = quantised(module, inputs, quantizer, [1] * 30, silent)
        logits, _ = made(torch.ones(size, dtype=torch.int32), torch.full((1, 4), 20.0))
    torch.testing.assert_close(logits, torch.full((1, 4), 20.0 + size), atol=0.3, rtol=0)


def test_configurations_are_moved_to_the_wide_layout_and_others_are_left_alone() -> None:
    narrow = device.Narrow(0, (57, 9))
    other = ctypes.c_uint32(3)
    given = [
        device.DeviceConfig(device.CUSTOM, ctypes.addressof(narrow)),
        device.DeviceConfig(1, ctypes.addressof(other)),
    ]
    pointers = (ctypes.POINTER(device.DeviceConfig) * 3)(*map(ctypes.pointer, given))
    widened, _kept = device.widen(ctypes.cast(pointers, device.Configs))
    at = widened[0].contents.value
    assert widened[0].contents.kind == device.CUSTOM
    assert ctypes.c_uint32.from_address(at).value == 0
    assert list((ctypes.c_uint32 * 2).from_address(at + 8)) == [57, 9]
    assert (widened[1].contents.kind, widened[1].contents.value) == (1, ctypes.addressof(other))
    assert not widened[2]


def test_methods_that_share_weights_are_not_emulated(half: Made) -> None:
    document = manifest.read(half.folder)
    shared = replace(document, target=replace(document.target, options={"soc": "sm8650", "share": "yes"}))
    with pytest.raises(Missing, match="cannot run methods that share weights"):
        pte.open_session(Artifact(half.folder, shared), "htp-emulator")


def test_without_libraries_it_says_where_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(qnn.ROOT, raising=False)
    monkeypatch.setattr(qnn, "find_spec", _all_but(qnn.PACKAGE))
    assert executorch_qnn.missing() == qnn.missing()
    assert pte.missing("htp-emulator") == qnn.missing()
    with pytest.raises(Missing, match=r"no QNN libraries: set QNN_SDK_ROOT to .*pip install 'rwkv-export\[qnn\]'"):
        qnn.prepare()


def test_an_sdk_comes_first_and_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    libraries = tmp_path / "lib" / "x86_64-linux-clang"
    libraries.mkdir(parents=True)
    (libraries / qnn.HTP).touch()
    monkeypatch.setenv(qnn.ROOT, str(tmp_path))
    assert qnn.missing() == f"{libraries} lacks libQnnSystem.so: {qnn.INSTALL}"


def test_libraries_that_do_not_load_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    libraries = tmp_path / "lib" / "x86_64-linux-clang"
    libraries.mkdir(parents=True)
    for name in (qnn.HTP, qnn.SYSTEM):
        (libraries / name).write_bytes(b"no library")
    monkeypatch.setenv(qnn.ROOT, str(tmp_path))
    with pytest.raises(Missing, match="do not load"):
        qnn.prepare()


def _all_but(absent: str) -> Any:
    return lambda name: None if name == absent else ModuleSpec(name, None)
