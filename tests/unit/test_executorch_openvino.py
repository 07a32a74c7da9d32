"""ExecuTorch with OpenVINO: programs it takes whole, run by its CPU plug-in in the float32 they were exported with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from exporter.targets import executorch_openvino
from runtimes import manifest, openvino
from runtimes.backends import pte
from runtimes.contract import Session
from runtimes.manifest import open_artifact
from runtimes.openvino import INSTRUCTIONS, WITHOUT_BFLOAT16, keep_float32
from tests.oracle import trace_of
from tests.requirements import require
from tests.unit.small_exports import (
    TOKENS,
    assert_whole,
    exported,
    in_chunks,
    in_torch,
    largest,
    stepping,
    with_shifts_swapped,
)

pytestmark = pytest.mark.slow

TARGET = "executorch-openvino"
CHUNK = 4
BOUND = 2e-5


@pytest.fixture(scope="module")
def used_before() -> None:
    """OpenVINO chooses its instructions once a process; here another place has used it, as in `validate out/*`."""
    require("openvino", executorch_openvino.missing())
    from openvino import Model, opset13

    given = opset13.parameter([1, 8], np.float32)
    product = opset13.matmul(given, opset13.constant(np.ones((8, 8), np.float32)), False, False)
    openvino.core().compile_model(Model([product], [given]), "CPU")


@pytest.fixture(scope="module")
def whole(used_before: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 7 with two layers, and with a method for four tokens."""
    require("openvino", executorch_openvino.missing())
    return exported("7", TARGET, tmp_path_factory.mktemp("whole"), layers=2, prefill=(CHUNK,))


@pytest.fixture(scope="module")
def half(used_before: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 5.2 with weights of float16."""
    require("openvino", executorch_openvino.missing())
    return exported("5.2", TARGET, tmp_path_factory.mktemp("half"), precision="fp16")


@pytest.fixture(scope="module")
def session(whole: Path) -> Iterator[Session]:
    with closing(pte.open_session(open_artifact(whole), "openvino")) as opened:
        yield opened


def test_openvino_takes_every_method_as_a_whole(whole: Path, half: Path) -> None:
    assert_whole(whole, "OpenvinoBackend", ["decode", f"prefill{CHUNK}"])
    assert_whole(half, "OpenvinoBackend", ["decode"])


def test_steps_agree_with_torch_and_say_where_they_ran(whole: Path, session: Session) -> None:
    assert 0 < stepping(session, in_torch(whole)) < BOUND
    placed = session.placement()
    assert (placed.observed, dict(placed.nodes), placed.evidence) == ("pte:openvino", {"OpenvinoBackend": 1}, "run")


def test_a_prompt_agrees_with_steps(whole: Path, session: Session) -> None:
    assert in_chunks(session, in_torch(whole), [CHUNK, CHUNK, 2]) < BOUND
    assert 0 < in_chunks(session, trace_of(session, TOKENS), [CHUNK, CHUNK, 2]) < BOUND


def test_states_taken_for_each_other_are_noticed(whole: Path) -> None:
    with closing(pte.open_session(with_shifts_swapped(open_artifact(whole)), "openvino")) as swapped:
        assert stepping(swapped, in_torch(whole)) > 1000 * BOUND


def test_half_precision_rounds_the_weights_and_keeps_states_wide(half: Path) -> None:
    assert {tensor.dtype for tensor in manifest.read(half).state} == {"float32"}
    wanted = in_torch(half)
    with closing(pte.open_session(open_artifact(half), "openvino")) as opened:
        made = trace_of(opened, TOKENS)
    assert 1e-4 < largest(made, wanted) < 3e-2
    assert any((state != state.astype(np.float16)).any() for state in made.states.values())


def test_the_compiler_is_its_own_again_after_an_export(half: Path) -> None:
    from openvino import Core
    from openvino.frontend.pytorch.torchdynamo import compile as compiler

    assert compiler.Core is Core


def test_bfloat16_is_forbidden_unless_the_environment_says_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INSTRUCTIONS, "AVX2")
    keep_float32()
    assert os.environ[INSTRUCTIONS] == "AVX2"
    monkeypatch.delenv(INSTRUCTIONS)
    keep_float32()
    assert os.environ[INSTRUCTIONS] == WITHOUT_BFLOAT16


def test_the_target_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "find_spec", lambda name: None)
    said = "the Python package openvino is not installed (pip install 'rwkv-export[openvino]')"
    assert executorch_openvino.missing() == said


def test_versions_that_read_freed_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "find_spec", lambda name: name)
    monkeypatch.setattr(openvino, "version", lambda name: "2025.4.1")
    assert executorch_openvino.missing() is None
    monkeypatch.setattr(openvino, "version", lambda name: "2026.0.0")
    assert (executorch_openvino.missing() or "").startswith(
        "openvino 2026.0.0 reads programs that ExecuTorch has freed"
    )
