"""Quantised ExecuTorch artifacts: what XNNPACK takes, their bytes, what they cost on text, and what must fail."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import exporter
from exporter import bundled
from runtimes import manifest
from runtimes.errors import WrongCall
from tests.conftest import untraced
from tests.models import random_checkpoint
from validation import validate
from validation.outcome import Outcome

pytestmark = pytest.mark.slow

SMALL = {"layers": 1, "width": 64, "head_size": 32, "vocab": 101, "ffn": 160}
MODEL = bundled.SIBLINGS["4"]
LOOKUPS = {"aten.embedding", "dim_order_ops._to_dim_order_copy"}


def exported(checkpoint: Path, precision: str, out: Path, **options: str) -> Path:
    with untraced():
        (folder,) = exporter.export(
            checkpoint, targets=["executorch-xnnpack"], precision=precision, out=out, options=options
        )
    return folder


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(MODEL, "8da8w", tmp_path_factory.mktemp("eight"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a prefill graph."""
    with untraced():
        (folder,) = exporter.export(
            MODEL,
            targets=["executorch-xnnpack"],
            precision="8da4w",
            prefill=[4],
            out=tmp_path_factory.mktemp("four"),
        )
    return folder


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7a"])  # 5.0 and 5.1 multiply as 5.2 does, 7 as 7a
def test_a_step_is_one_delegate_behind_its_lookups(version: str, tmp_path: Path) -> None:
    """4-bit matrices and an 8-bit head, in weights of every version that move the logits."""
    path = tmp_path / "random.pth"
    torch.save(random_checkpoint(version, **SMALL, seed=5), path)
    folder = exported(path, "8da4w", tmp_path, weights="separate")
    (graph,) = manifest.read(folder).graphs
    tables = 2 if version == "7a" else 1
    assert graph.coverage is not None
    assert graph.coverage.delegates == {"XnnpackBackend": 1}
    assert set(graph.coverage.outside) == LOOKUPS
    assert graph.coverage.outside["aten.embedding"] == 2 * tables
    assert graph.coverage.macs_outside == 0
    assert (folder / "model.pte").stat().st_size < 64_000  # no weight is left in it
    (row,) = validate([folder], checkpoint=path, steps=12, quality=False).parity
    assert row.outcome is Outcome.PASS, row.reasons
    assert row.bound is not None
    assert row.bound.name == "int4"


def constants(path: Path) -> int:
    """Bytes of everything in a program that is no instruction."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    file = deserialize_pte_binary(path.read_bytes())
    assert file.named_data is not None
    held = [buffer.storage for buffer in file.program.constant_buffer]
    return sum(map(len, held)) + sum(map(len, file.named_data.buffers))


def weight_bits(bits: float) -> float:
    """Of MODEL: matrices of `bits` a value, head and table of 8, all with their scales; of vectors 32."""
    stored = torch.load(MODEL, weights_only=True)
    sizes = {name: tensor.numel() for name, tensor in stored.items()}
    matrices = sum(size for name, size in sizes.items() if stored[name].dim() == 2 and name.startswith("blocks."))
    table, head = sizes.pop("emb.weight"), sizes.pop("head.weight")
    channels = stored["head.weight"].shape[0] * 32
    vectors = sum(sizes.values()) - matrices
    return matrices * bits + head * 8 + channels + table * (8 + 16 / 32) + vectors * 32


@pytest.mark.parametrize(("name", "bits"), [("eight", 8 + 32 / 128), ("four", 4 + 16 / 32)])
def test_a_program_holds_the_bits_of_its_weights_once(name: str, bits: float, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    held = constants(folder / "model.pte")
    assert held < 1.1 * weight_bits(bits) / 8
    for graph in manifest.read(folder).graphs:
        assert graph.coverage is not None
        counted = graph.coverage.weights_inside + graph.coverage.weights_outside
        assert 0.95 * held < counted < 1.05 * held  # scales of 4 bits are counted in float32 and held in bfloat16


@pytest.mark.parametrize(("name", "row", "most"), [("eight", "int8", 2e-3), ("four", "int4", 5e-2)])
def test_text_costs_no_more_than_published(name: str, row: str, most: float, request: pytest.FixtureRequest) -> None:
    results = validate([request.getfixturevalue(name)], checkpoint=MODEL, steps=12)
    (parity,), (quality,) = results.parity, results.quality
    assert (parity.outcome, quality.outcome) == (Outcome.PASS, Outcome.PASS), (parity.reasons, quality.reasons)
    assert quality.bound is not None
    assert quality.bound.name == row
    assert quality.reading is not None
    assert 0 < quality.reading.kl_mean < most


def test_what_stays_wider_is_in_the_manifest(four: Path, eight: Path) -> None:
    document = manifest.read(four)
    assert document.precision.weights == "int4"
    assert {"emb", "head.weight"} <= {kept.tensors for kept in document.precision.kept if kept.dtype == "int8"}
    assert [kept.dtype for kept in manifest.read(eight).precision.kept] == ["float32"]
    assert "torchao" in document.tools


def test_wrong_scales_fail(eight: Path, tmp_path: Path) -> None:
    """The scales of the head, found by value, are made a quarter larger in every second output."""
    folder = shutil.copytree(eight, tmp_path / "wrong")
    head = torch.load(MODEL, weights_only=True)["head.weight"].float().numpy()
    scales = np.abs(head).max(1) / np.float32(127.5)
    program = folder / "model.pte"
    content = program.read_bytes()
    assert content.count(scales.tobytes()) == 1
    wrong = scales.copy()
    wrong[::2] *= 1.25
    program.write_bytes(content.replace(scales.tobytes(), wrong.tobytes()))
    document = manifest.read(folder)
    manifest.write(dataclasses.replace(document, files=manifest.list_files(folder)), folder)
    results = validate([folder], checkpoint=MODEL, steps=12)
    assert Outcome.FAIL in (results.parity[0].outcome, results.quality[0].outcome)


def test_there_is_nothing_to_calibrate_in_8_bits(tmp_path: Path) -> None:
    with pytest.raises(WrongCall, match="8da8w stores no matrix in 4 bits"):
        exported(MODEL, "8da8w", tmp_path, calibrate="gptq")
    assert not list(tmp_path.iterdir())
