"""ExecuTorch with TOSA: graphs it takes whole, taken out of the program again and run by Arm's reference model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from exporter.targets import executorch_tosa
from runtimes.backends import tosa
from runtimes.contract import Session
from runtimes.errors import BadArtifact
from runtimes.manifest import open_artifact
from tests.oracle import trace_of
from tests.requirements import require
from tests.unit import small_pte
from tests.unit.small_exports import TOKENS, assert_whole, exported, in_chunks, in_torch, stepping, with_shifts_swapped

pytestmark = pytest.mark.slow

TARGET = "executorch-tosa"
CHUNK = 3
BOUND = 2e-5


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 7."""
    require("tosa", executorch_tosa.missing() or tosa.missing("reference"))
    return exported("7", TARGET, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 4 with a method for three tokens."""
    require("tosa", executorch_tosa.missing() or tosa.missing("reference"))
    return exported("4", TARGET, tmp_path_factory.mktemp("older"), prefill=(CHUNK,))


@pytest.fixture(scope="module")
def session(older: Path) -> Iterator[Session]:
    with closing(tosa.open_session(open_artifact(older), "reference")) as opened:
        yield opened


def test_tosa_takes_every_method_as_a_whole(whole: Path, older: Path) -> None:
    assert_whole(whole, "TOSABackend", ["decode"])
    assert_whole(older, "TOSABackend", ["decode", f"prefill{CHUNK}"])


def test_steps_of_an_older_version_agree_with_torch_and_say_that_they_are_emulated(
    older: Path, session: Session
) -> None:
    assert 0 < stepping(session, in_torch(older)) < BOUND
    placed = session.placement()
    assert (placed.observed, dict(placed.nodes), placed.evidence) == ("tosa:reference", {"TOSABackend": 1}, "emulated")


def test_steps_agree_with_torch(whole: Path) -> None:
    with closing(tosa.open_session(open_artifact(whole), "reference")) as opened:
        assert 0 < stepping(opened, in_torch(whole)) < BOUND


def test_a_prompt_agrees_with_steps(older: Path, session: Session) -> None:
    sizes = [CHUNK, CHUNK, CHUNK, 1]
    assert in_chunks(session, in_torch(older), sizes) < BOUND
    assert 0 < in_chunks(session, trace_of(session, TOKENS), sizes) < BOUND


def test_states_taken_for_each_other_are_noticed(older: Path) -> None:
    with closing(tosa.open_session(with_shifts_swapped(open_artifact(older)), "reference")) as swapped:
        assert stepping(swapped, in_torch(older)) > 1000 * BOUND


def test_a_program_of_another_delegate_is_refused_with_what_it_calls(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match=r"is not one call of TOSABackend but .*1 x XnnpackBackend"):
        tosa.open_session(small_pte.write(tmp_path), "reference")


@pytest.mark.parametrize(("module", "package"), [("executorch", "executorch"), ("tosa_reference_model", "tosa-tools")])
def test_the_place_says_what_it_lacks(module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tosa, "find_spec", lambda name: None if name == module else find_spec("os"))
    assert (tosa.missing("reference") or "").startswith(f"the Python package {package} is not installed")


def test_the_target_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executorch_tosa, "find_spec", lambda name: None)
    assert (executorch_tosa.missing() or "").startswith("the Python package tosa-tools is not installed")
