"""Tuned states and the norm's epsilon reach the artifact and the reference as the `rwkv` package means them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import runtimes
from exporter import export, reference_session
from runtimes import manifest, npz
from runtimes.errors import BadCheckpoint, WrongCall
from tests.conftest import AWKWARD, Exports
from tests.models import Dice, Tensors, random_checkpoint
from tests.oracle import Oracle, errors, trace_of
from validation import validate
from validation.outcome import Outcome
from validation.reference import Reference

pytestmark = pytest.mark.slow

LAYERS, HEADS, SIZE = AWKWARD["layers"], AWKWARD["width"] // AWKWARD["head_size"], AWKWARD["head_size"]
TOKENS = np.random.default_rng(8).integers(0, AWKWARD["vocab"], 16).tolist()
BOUND = 1e-5  # of a tensor's largest value, fp32 against fp32
FAR = 1e-2


def saved(weights: Tensors, path: Path) -> Path:
    torch.save(weights, path)
    return path


def random_weights(version: str) -> Tensors:
    """Those of `Exports.checkpoint`."""
    return random_checkpoint(version, **AWKWARD, seed=3)


def tuned_states(seed: int = 4) -> Tensors:
    dice = Dice(seed)
    return {f"blocks.{i}.att.time_state": dice.normal(HEADS, SIZE, SIZE) for i in range(LAYERS)}


def package_trace(version: str, tuned: Tensors) -> Any:
    """The package transposes `time_state` of versions 5 and 6, and starts version 7 from what it is given."""
    weights = random_weights(version)
    if version == "7":
        start = {name.replace("time_state", "wkv"): tensor for name, tensor in tuned.items()}
        return Oracle(weights, version).trace(TOKENS, start)
    return Oracle(weights | tuned, version).trace(TOKENS)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("version", ["5.0", "5.2", "6", "7"])
def test_a_tuned_state_becomes_the_initial_state(
    exports: Exports, tmp_path: Path, version: str, separate: bool
) -> None:
    tuned = tuned_states()
    if separate:
        checkpoint, state = exports.checkpoint(version), saved(tuned, tmp_path / "state.pth")
    else:
        checkpoint, state = saved(random_weights(version) | tuned, tmp_path / "tuned.pth"), None
    (folder,) = export(checkpoint, targets=["torch"], out=tmp_path, state=state)
    with np.load(folder / "initial_state.npz", allow_pickle=False) as stored:
        assert set(stored.files) == {name.replace("time_state", "wkv") for name in tuned}
    session = runtimes.open_session(folder)
    found = errors(trace_of(session, TOKENS), package_trace(version, tuned))
    assert max(found.values()) < BOUND, found
    start = session.read_state(session.initial_state())["blocks.1.att.wkv"][0]
    as_stored = tuned["blocks.1.att.time_state"].numpy()
    np.testing.assert_array_equal(start, as_stored if version == "7" else as_stored.transpose(0, 2, 1))
    (row,) = validate([folder], steps=8).parity
    assert row.outcome is Outcome.PASS, row.reasons


@pytest.mark.parametrize("version", ["6", "7"])
def test_the_reference_starts_from_the_checkpoints_tuned_state(tmp_path: Path, version: str) -> None:
    path = saved(random_weights(version) | tuned_states(), tmp_path / "tuned.pth")
    found = errors(trace_of(reference_session(path), TOKENS), package_trace(version, tuned_states()))
    assert max(found.values()) < BOUND, found


def test_a_tuned_state_takes_the_shapes_and_names_of_any_target(exports: Exports, tmp_path: Path) -> None:
    path = saved(random_weights("6") | tuned_states(), tmp_path / "tuned.pth")
    options = {"names": "rwkv-mobile", "ios": "18", "state": "mlstate"}
    folders = export(path, targets=["onnx-cpu", "coreml"], precision="fp16", options=options, out=tmp_path)
    for row in validate(folders, steps=8).parity:
        assert row.outcome is Outcome.PASS, row.reasons


def test_an_artifact_that_lost_its_tuned_state_fails(tmp_path: Path) -> None:
    path = saved(random_weights("6") | tuned_states(), tmp_path / "tuned.pth")
    (folder,) = export(path, targets=["torch"], out=tmp_path)
    (folder / "initial_state.npz").unlink()
    document = dataclasses.replace(manifest.read(folder), initial_state=None, files=manifest.list_files(folder))
    manifest.write(document, folder)
    (row,) = validate([folder], steps=8).parity
    assert row.outcome is Outcome.FAIL
    assert any("before the first step" in reason for reason in row.reasons)


def test_a_stored_state_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    square = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.savez(tmp_path / "states.npz", rows=square, columns=np.asfortranarray(square))
    for array in npz.read(tmp_path / "states.npz").values():
        np.testing.assert_array_equal(array, square)


def partial_states(tuned: Tensors) -> None:
    del tuned["blocks.1.att.time_state"]


def deeper_states(tuned: Tensors) -> None:
    tuned["blocks.2.att.time_state"] = tuned["blocks.0.att.time_state"]


def wider_states(tuned: Tensors) -> None:
    tuned["blocks.1.att.time_state"] = torch.zeros(HEADS + 1, SIZE, SIZE)


def nan_states(tuned: Tensors) -> None:
    tuned["blocks.1.att.time_state"][0, 0, 0] = torch.nan


def no_states(tuned: Tensors) -> None:
    tuned.clear()
    tuned["emb.weight"] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (partial_states, r"^blocks\.1\.att\.time_state is missing from the tuned states of this RWKV-6 of 2 layers$"),
        (deeper_states, r"^blocks\.2\.att\.time_state does not belong to the tuned states of this RWKV-6 of 2 layers$"),
        (wider_states, r"^blocks\.1\.att\.time_state has shape \(4, 32, 32\), expected \(3, 32, 32\)$"),
        (nan_states, r"^blocks\.1\.att\.time_state holds 1 NaN and 0 Inf of 3072 values$"),
        (no_states, r"^the state file has no time_state of this RWKV-6 model; it has emb\.weight$"),
    ],
)
def test_a_state_file_of_another_model_is_refused(
    exports: Exports, tmp_path: Path, damage: Callable[[Tensors], None], message: str
) -> None:
    tuned = tuned_states()
    damage(tuned)
    state = saved(tuned, tmp_path / "state.pth")
    with pytest.raises(BadCheckpoint, match=message):
        export(exports.checkpoint("6"), targets=["torch"], out=tmp_path / "out", state=state)
    assert not (tmp_path / "out").exists()


def test_tuned_states_come_from_one_place(tmp_path: Path) -> None:
    path = saved(random_weights("6") | tuned_states(), tmp_path / "tuned.pth")
    state = saved(tuned_states(seed=5), tmp_path / "state.pth")
    with pytest.raises(WrongCall, match="the checkpoint has tuned states of its own"):
        export(path, targets=["torch"], out=tmp_path / "out", state=state)


def test_version_4_has_no_state_to_tune(exports: Exports, tmp_path: Path) -> None:
    state = saved(tuned_states(), tmp_path / "state.pth")
    with pytest.raises(BadCheckpoint, match="no time_state of this RWKV-4 model"):
        export(exports.checkpoint("4"), targets=["torch"], out=tmp_path / "out", state=state)
    path = saved(random_weights("4") | tuned_states(), tmp_path / "tuned.pth")
    with pytest.raises(BadCheckpoint, match=r"time_state does not belong to the tuned states of this RWKV-4"):
        export(path, targets=["torch"], out=tmp_path / "out")


@pytest.mark.parametrize("version", ["5.2", "7"])
@pytest.mark.parametrize("target", ["torch", "onnx-cpu"])
def test_ln_x_eps_reaches_the_graph(exports: Exports, tmp_path: Path, version: str, target: str) -> None:
    (folder,) = export(exports.checkpoint(version), targets=[target], out=tmp_path, ln_x_eps=0.02)
    assert manifest.read(folder).model.ln_x_eps == 0.02
    got = trace_of(runtimes.open_session(folder), TOKENS)
    weights = random_weights(version)
    found = errors(got, trace_of(Reference(weights, version, ln_x_eps=0.02), TOKENS))
    assert max(found.values()) < BOUND, found
    assert errors(got, trace_of(Reference(weights, version), TOKENS))["logits"] > FAR
    (row,) = validate([folder], steps=8).parity
    assert row.outcome is Outcome.PASS, row.reasons
