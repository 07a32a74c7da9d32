"""Small random models exported for a delegate, the numbers they must have, and manifests that lie about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporter import export
from runtimes import manifest
from runtimes.contract import Artifact, Session
from runtimes.pte.program import Program
from tests.models import random_checkpoint
from tests.oracle import Trace, trace_of
from tests.parity.stepping import StepModule, rows

SIZES: dict[str, Any] = {"width": 32, "head_size": 16, "vocab": 33, "ffn": 40}
SHIFTS = ("blocks.0.att.shift", "blocks.0.ffn.shift")
TOKENS = [3, 31, 0, 7, 7, 19, 32, 1, 5, 12]


def exported(
    version: str,
    target: str,
    folder: Path,
    *,
    layers: int = 1,
    precision: str = "fp32",
    prefill: Sequence[int] = (),
    options: Mapping[str, str] | None = None,
) -> Path:
    path = folder / f"{version}.pth"
    torch.save(checkpoint(version, layers), path)
    (made,) = export(path, targets=[target], precision=precision, prefill=prefill, options=options, out=folder)
    return made


def checkpoint(version: str, layers: int) -> dict[str, torch.Tensor]:
    return random_checkpoint(version, layers=layers, **SIZES, seed=3)


def in_torch(folder: Path) -> Trace:
    """What the artifact's checkpoint gives, one token after another."""
    model = manifest.read(folder).model
    return StepModule(checkpoint(model.version, model.layers), model.version).trace(TOKENS)


def stepping(session: Session, wanted: Trace) -> float:
    """The largest error of a logit or a state, at any token."""
    return largest(trace_of(session, TOKENS), wanted)


def in_chunks(session: Session, wanted: Trace, sizes: Sequence[int]) -> float:
    """As `stepping`, where TOKENS are fed as prompts of these sizes."""
    state, logits, states, start = session.initial_state(), [], [], 0
    for size in sizes:
        step = session.prefill(TOKENS[start : start + size], state)
        state, start = step.state, start + size
        logits.append(step.logits)
        states.append(session.read_state(state))
    made = Trace(np.stack(logits), {name: np.stack([each[name] for each in states]) for name in states[0]})
    return largest(made, rows(wanted, sizes))


def largest(made: Trace, wanted: Trace) -> float:
    found = made.tensors()
    return float(max(np.abs(found[name] - tensor).max() for name, tensor in wanted.tensors().items()))


def with_shifts_swapped(artifact: Artifact) -> Artifact:
    """The artifact whose manifest takes the two shift states of the first block for each other."""
    state = list(artifact.manifest.state)
    one, other = (index for index, tensor in enumerate(state) if tensor.name in SHIFTS)
    names = state[other].name, state[one].name
    state[one], state[other] = (replace(state[at], name=name) for at, name in zip((one, other), names, strict=True))
    return Artifact(artifact.folder, replace(artifact.manifest, state=tuple(state)))


def assert_whole(folder: Path, delegate: str, methods: Sequence[str]) -> None:
    """Every method is one call of the delegate, by the manifest and by the program."""
    program, graphs = Program(folder / "model.pte"), manifest.read(folder).graphs
    assert [graph.function for graph in graphs] == list(methods)
    for graph in graphs:
        assert graph.coverage is not None
        assert (graph.coverage.delegates, graph.coverage.outside) == ({delegate: 1}, {})
        assert (graph.coverage.macs_outside, graph.coverage.weights_outside) == (0, 0)
        assert graph.coverage.inside["aten.embedding"] == 1
        assert program.calls(str(graph.function)) == {delegate: 1}
