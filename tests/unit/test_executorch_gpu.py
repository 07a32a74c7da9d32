"""ExecuTorch for GPUs: what Vulkan, WebGPU and VGF take of a program, and that preparing it changes no number."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from exporter import registry
from exporter.passes import edge_fold, torch_prepare
from exporter.quiet import quiet
from exporter.targets import executorch_vgf, executorch_vulkan, executorch_webgpu
from runtimes import manifest
from runtimes.contract import HALF_FILL
from runtimes.pte.program import Program
from tests.parity.stepping import StepModule
from tests.requirements import require
from tests.unit.small_exports import assert_whole, checkpoint, exported

pytestmark = pytest.mark.slow

CHUNK = 5


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 4 in float16, which takes the larger of two, with a method for five tokens."""
    return exported("4", "executorch-vulkan", tmp_path_factory.mktemp("half"), precision="fp16", prefill=(CHUNK,))


@pytest.fixture(scope="module")
def webgpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 7."""
    return exported("7", "executorch-webgpu", tmp_path_factory.mktemp("webgpu"))


def test_vulkan_takes_every_method_as_a_whole(half: Path) -> None:
    assert_whole(half, "VulkanBackend", ["decode", f"prefill{CHUNK}"])
    assert {graph.input_dtype for graph in manifest.read(half).graphs} == {"int32"}
    assert "Tensor.fromBlob(intArrayOf(token)" in (half / "README.md").read_text(encoding="utf-8")


def test_half_precision_is_the_delegate_s_own_and_fills_fit_it(half: Path) -> None:
    document = manifest.read(half)
    assert (document.precision.weights, document.precision.compute) == ("float16", "float16")
    assert {tensor.dtype for tensor in document.state} == {"float32"}
    assert min(tensor.fill for tensor in document.state) == HALF_FILL
    options = Program(half / "model.pte").plan("decode").delegates[0].compile_specs
    assert [bytes(option.value) for option in options if option.key == "force_fp16"] == [b"\1"]


def test_webgpu_takes_the_step_as_a_whole_with_vulkan_s_compiler(webgpu: Path) -> None:
    assert_whole(webgpu, "VulkanBackend", ["decode"])
    assert "kotlin" not in (webgpu / "README.md").read_text(encoding="utf-8")  # browsers and desktops


def test_vgf_takes_the_step_as_a_whole(tmp_path: Path) -> None:
    require("vgf", registry.missing("executorch-vgf"))
    folder = exported("4", "executorch-vgf", tmp_path)
    assert_whole(folder, "VgfBackend", ["decode"])
    assert Program(folder / "model.pte").blob("decode").startswith(b"VGF1")


def operators(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize(("version", "tokens", "absent"), [("4", 1, "aten.maximum.default"), ("6", 5, "aten.arange")])
def test_prepared_programs_compute_the_same(version: str, tokens: int, absent: str) -> None:
    model = StepModule(checkpoint(version, 1), version)
    given = (torch.arange(tokens), *model.initial())
    with quiet(), torch.no_grad():
        program = torch.export.export(model.module.eval(), given, strict=False)
        assert any(name.startswith(absent) for name in operators(program))
        prepared = edge_fold.folded(torch_prepare.for_vulkan({"decode": program}))["decode"]
        assert not any(name.startswith(absent) for name in operators(prepared))
        for one, other in zip(prepared.module()(*given), model.module(*given), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


class Sums(torch.nn.Module):
    """Sums that drop one axis, two or none, and the larger of two."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.sum(1), x.sum(-2), x.sum((0, 1)), x.sum(2, keepdim=True), x[0].sum(1), torch.maximum(x[0], x[1])


def test_respelled_sums_and_maxima_are_the_same() -> None:
    x = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(Sums(), (x,))
    prepared = torch_prepare.for_vulkan({"decode": program})["decode"]
    sums = [node for node in prepared.graph.nodes if node.target is torch.ops.aten.sum.dim_IntList]
    assert [len(node.args[0].meta["val"].shape) for node in sums] == [3, 3, 5, 5, 3]
    assert [node.args[2:] for node in sums] == [(True,), (True,), (), (True,), (True,)]
    for one, other in zip(prepared.module()(x), Sums()(x), strict=True):
        torch.testing.assert_close(one, other)


def without(*names: str) -> Any:
    """A find_spec that does not find these."""
    from importlib.util import find_spec

    return lambda name: None if name in names else find_spec(name) or object()


@pytest.mark.parametrize(
    ("module", "absent", "sentence"),
    [
        (executorch_vulkan, "executorch", "executorch is not installed"),
        (executorch_webgpu, "executorch", "executorch is not installed"),
        (executorch_webgpu, "executorch.backends.webgpu", "executorch has no WebGPU compiler"),
        (executorch_vgf, "executorch", "executorch is not installed"),
        (executorch_vgf, "tosa_serializer", "tosa-tools is not installed"),
    ],
)
def test_a_target_says_which_package_it_lacks(
    module: ModuleType, absent: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", without(absent))
    assert sentence in (module.missing() or "")


def converter(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_vgf_says_why_the_converter_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(executorch_vgf, "find_spec", without())
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    assert "model-converter is not on the PATH" in (executorch_vgf.missing() or "")
    monkeypatch.undo()
    monkeypatch.setattr(executorch_vgf, "find_spec", without())
    old = "echo 'libc.so.6: version `GLIBC_2.38 not found' >&2; exit 1"
    monkeypatch.setenv("MODEL_CONVERTER_PATH", converter(tmp_path / "old", old))
    assert (executorch_vgf.missing() or "").endswith("does not start: libc.so.6: version `GLIBC_2.38 not found")
    monkeypatch.setenv("MODEL_CONVERTER_PATH", converter(tmp_path / "good", "echo 0.11.0"))
    assert executorch_vgf.missing() is None


def test_vgf_waits_for_no_converter_forever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def slow(*args: Any, **options: Any) -> None:
        raise subprocess.TimeoutExpired("model-converter", options["timeout"])

    monkeypatch.setattr(executorch_vgf, "find_spec", without())
    monkeypatch.setenv("MODEL_CONVERTER_PATH", converter(tmp_path / "slow", "sleep 100"))
    monkeypatch.setattr(subprocess, "run", slow)
    assert "timed out after 60 seconds" in (executorch_vgf.missing() or "")
