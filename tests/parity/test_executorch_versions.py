"""Every version as XNNPACK takes it: decode and prefill as one delegate each, right to the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import exporter
import runtimes
from exporter.passes.edge_fold import folded
from exporter.passes.edge_views import views
from exporter.quiet import quiet
from runtimes import manifest
from tests.conftest import untraced
from tests.models import VERSIONS, Tensors, random_checkpoint
from tests.oracle import Trace, errors, trace_of
from tests.parity.stepping import rows
from validation.reference import Reference

STEPS, SIZE, REST = 3, 32, 2  # single tokens, then a call of two blocks, then single tokens
VOCAB = 67
TOKENS = np.random.default_rng(2).integers(0, VOCAB, STEPS + SIZE + REST).tolist()
BOUND = 1e-5  # of a tensor's largest value; test_step_modules.py holds the module itself to the same


def weights_of(version: str) -> Tensors:
    """A random model; of RWKV-7 with two layers, because the second has what the first has not."""
    layers = 2 if version == "7" else 1
    return random_checkpoint(version, layers=layers, width=64, head_size=32, vocab=VOCAB, seed=1)


@pytest.fixture(scope="module", params=[version for version in VERSIONS if version != "5.1"])  # 5.0 with 5.2's gate
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A version, and its artifact for 1 and for SIZE tokens."""
    version, folder = request.param, tmp_path_factory.mktemp("version")
    torch.save(weights_of(version), folder / "model.pth")
    choices = {"targets": ["executorch-xnnpack"], "out": folder / "out", "prefill": (SIZE,)}
    with untraced():
        (made,) = exporter.export(folder / "model.pth", **choices)
    return version, made


def test_each_method_is_one_delegate_around_the_tables(exported: tuple[str, Path]) -> None:
    version, folder = exported
    graphs = manifest.read(folder).graphs
    assert [(graph.function, graph.tokens) for graph in graphs] == [("decode", 1), (f"prefill{SIZE}", SIZE)]
    for graph in graphs:
        assert graph.coverage is not None
        assert graph.coverage.delegates == {"XnnpackBackend": 1}
        assert graph.coverage.outside == {"aten.embedding": 2 if version == "7a" else 1}  # 7a has one more a layer
        assert graph.coverage.macs_outside == 0 < graph.coverage.macs_inside


def test_a_prompt_between_steps_is_right_to_the_float64_reference(exported: tuple[str, Path]) -> None:
    version, folder = exported
    session = runtimes.open_session(folder)
    state, made = session.initial_state(), []
    for token in TOKENS[:STEPS]:
        made.append(session.step(token, state))
        state = made[-1].state
    made.append(session.prefill(TOKENS[STEPS:], state))
    states = [session.read_state(step.state) for step in made]
    session.close()
    together = {name: np.stack([state[name] for state in states]) for name in states[0]}
    got = Trace(np.stack([step.logits for step in made]), together)
    wanted = trace_of(Reference(weights_of(version), version), TOKENS)
    found = errors(got, rows(wanted, [*[1] * STEPS, SIZE + REST]))
    assert max(found.values()) < BOUND, found


class Masked(nn.Module):
    """A product below a mask, a weight that is computed with, and ones as many as the input has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, 3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        position = torch.arange(3)
        mask = (position[:, None] > position).to(x.dtype)
        return (x * mask) @ torch.exp(self.weight) + torch.ones_like(x)


def operators(graph: torch.fx.Graph) -> list[str]:
    """Names of a graph's operators in order, of any dialect, without the overload."""
    called = [node.target.__name__ for node in graph.nodes if node.op == "call_function"]
    return [name.removeprefix("aten.").partition(".")[0] for name in called]


def test_what_no_input_and_no_weight_is_in_becomes_a_constant() -> None:
    x = torch.rand(3, 3)
    program = torch.export.export(Masked(), (x,), strict=False)
    wanted = program.module()(x)
    assert {"arange", "gt", "ones_like"} <= set(operators(program.graph))
    (program,) = folded({"decode": program}).values()
    assert operators(program.graph) == ["mul", "exp", "matmul", "add"]
    assert torch.equal(program.module()(x), wanted)


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "before", "after"),
    [
        (lambda x: x[:, 1] + 1.0, "select_copy", ["slice_copy", "view_copy", "add"]),
        (lambda x: x[..., -1] + 1.0, "select_copy", ["slice_copy", "view_copy", "add"]),
        (lambda x: x[:, None] + 1.0, "unsqueeze_copy", ["view_copy", "add"]),
        (lambda x: x[:, :1].squeeze(1) + 1.0, "squeeze_copy", ["slice_copy", "view_copy", "add"]),
        (lambda x: x @ x.mT, "expand_copy", ["permute_copy", "bmm"]),
        (lambda x: x.reshape(4, 6)[:, None] + 1.0, "unsqueeze_copy", ["view_copy", "add"]),
        (lambda x: x[None] @ x[None].mT, "expand_copy", ["view_copy", "permute_copy", "view_copy", "bmm", "view_copy"]),
        (lambda x: x[:1].expand(2, 4, 3) + 1.0, "expand_copy", ["slice_copy", "expand_copy", "add"]),
    ],
)
def test_changes_of_shape_are_views_and_slices(function, before, after) -> None:
    from executorch.exir import to_edge

    x = torch.rand(2, 4, 3)
    with quiet():
        edge = to_edge(torch.export.export(Calls(function), (x,), strict=False))
        assert before in operators(edge.exported_program().graph)
        program = edge.transform([views]).exported_program()
    print(operators(program.graph))
    assert operators(program.graph) == after
    assert torch.equal(program.module()(x), function(x))
