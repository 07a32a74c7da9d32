"""16-bit programs of PyTorch, states that stay on a device, and what is said where there is no CUDA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_exports import TOKENS, exported, in_chunks, in_torch, stepping

import runtimes
from runtimes import cuda_graphs, manifest, ort_cuda
from runtimes.backends import eager
from runtimes.contract import Session
from runtimes.session import explicit_session
from tests.requirements import require

pytestmark = pytest.mark.slow

BOUNDS = {"fp32": 5e-6, "fp16": 5e-3, "bf16": 5e-2}  # of a logit or a state, of a model so small


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("torch")
    return {name: exported("7", "torch", folder, precision=name, prefill=(4,)) for name in BOUNDS}


@pytest.mark.parametrize("precision", BOUNDS)
def test_on_the_cpu_it_is_the_checkpoint(made: dict[str, Path], precision: str) -> None:
    found = stepping(runtimes.open_session(made[precision], "eager:cpu"), in_torch(made[precision]))
    assert found < BOUNDS[precision]
    assert precision == "fp32" or found > BOUNDS["fp32"]  # it was really rounded


def test_states_are_types_that_every_machine_has(made: dict[str, Path]) -> None:
    types = {name: {tensor.dtype for tensor in manifest.read(folder).state} for name, folder in made.items()}
    assert types == {"fp32": {"float32"}, "fp16": {"float32", "float16"}, "bf16": {"float32"}}


def on_a_device(folder: Path) -> Session:
    """A session whose states are torch tensors, on the device that every machine has."""
    artifact = manifest.open_artifact(folder)
    slots = cuda_graphs.pool([tensor.spec() for tensor in artifact.manifest.state], "cpu")
    runs = {
        graph.tokens: cuda_graphs.Recorded(eager._load(folder / graph.file, "cpu"), graph.tokens, slots, "cpu")
        for graph in artifact.manifest.graphs
    }
    return explicit_session(artifact, runs, lambda: None, fetch=cuda_graphs.fetched)


def test_states_that_stay_on_a_device_are_the_same(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST_RECORDED", 0)  # the processor records nothing
    session = on_a_device(made["fp32"])
    assert stepping(session, in_torch(made["fp32"])) < BOUNDS["fp32"]
    assert in_chunks(session, in_torch(made["fp32"]), [4, 1, 4, 1]) < BOUNDS["fp32"]


def test_a_state_on_a_device_stays_what_it_was(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST_RECORDED", 0)
    session = on_a_device(made["fp16"])
    start = session.step(TOKENS[0], session.initial_state()).state
    before, first = session.read_state(start), session.step(7, start).logits
    state = start
    for token in TOKENS:
        state = session.step(token, state).state
    assert all(np.array_equal(before[name], array) for name, array in session.read_state(start).items())
    assert np.array_equal(session.step(7, session.write_state(before)).logits, first)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_without_cuda_both_say_so() -> None:
    assert eager.missing("cuda") == "PyTorch sees no CUDA device"
    assert "CUDA" in str(ort_cuda.missing())


@pytest.mark.parametrize("precision", BOUNDS)
def test_on_cuda_it_is_the_checkpoint(made: dict[str, Path], precision: str) -> None:
    require("cuda", eager.missing("cuda"))
    session = runtimes.open_session(made[precision], "eager:cuda")
    assert stepping(session, in_torch(made[precision])) < BOUNDS[precision]
    assert stepping(session, in_torch(made[precision])) < BOUNDS[precision]  # replayed
    assert session.placement().observed == "eager:cuda"
