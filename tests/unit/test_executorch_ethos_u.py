"""Arm's Ethos-U85: programs that vela takes whole, which nothing here runs, so that they are compiled and no pass."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from exporter import export
from exporter.model import open_model
from exporter.targets import executorch_ethos_u
from runtimes import manifest
from runtimes.backends import pte
from runtimes.errors import WrongCall
from tests.models import random_checkpoint
from tests.requirements import VARIABLE, require
from validation import exit_code, validate
from validation.outcome import Outcome

pytestmark = pytest.mark.slow


def checkpoint(version: str, folder: Path) -> Path:
    path = folder / f"{version}.pth"
    torch.save(random_checkpoint(version, layers=1, width=32, head_size=16, vocab=257, ffn=40, seed=3), path)
    return path


def test_vela_takes_the_step_whole_and_nothing_here_runs_it(tmp_path: Path) -> None:
    if "ethos-u" not in os.environ.get(VARIABLE, "").split(","):
        pytest.skip(f"compiling takes a minute of one core: {VARIABLE}=ethos-u has it done")
    require("ethos-u", executorch_ethos_u.missing())
    source = checkpoint("7", tmp_path)
    (made,) = export(source, targets=["executorch-ethos-u"], out=tmp_path)
    (graph,) = manifest.read(made).graphs
    assert graph.coverage is not None
    assert graph.coverage.delegates == {"EthosUBackend": 1}
    assert graph.coverage.macs_outside == graph.coverage.weights_outside == 0 < graph.coverage.macs_inside
    assert set(graph.coverage.outside) == set(graph.coverage.why)
    said = (made / "README.md").read_text()
    assert "CPU operators = 0 (0.0%)" in said and "(100.0%)" in said
    results = validate([made], checkpoint=source, steps=4)
    assert {row.outcome for row in (*results.parity, *results.quality)} == {Outcome.COMPILED}
    assert exit_code(results) == 3


def test_a_state_that_starts_at_minus_infinity_is_refused(tmp_path: Path) -> None:
    spec = open_model(checkpoint("4", tmp_path)).spec
    with pytest.raises(WrongCall, match="an Ethos-U has no floats"):
        executorch_ethos_u.refuse(spec, "a16w8", {})


def test_the_place_is_missing_and_says_why() -> None:
    assert pte.missing("ethos-u") == "this executorch was built without the delegate EthosUBackend"


def test_the_target_names_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executorch_ethos_u, "find_spec", lambda name: None if name.startswith("ethosu") else name)
    lacks = "the Python package ethos-u-vela is not installed (pip install 'rwkv-export[ethos-u]')"
    assert executorch_ethos_u.missing() == lacks
