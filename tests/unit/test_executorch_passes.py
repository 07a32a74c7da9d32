"""What XNNPACK's programs are rewritten with: masks become constants, changes of shape views; numbers stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from exporter.passes.edge_fold import folded
from exporter.passes.edge_views import views
from exporter.quiet import quiet


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
    assert operators(program.graph) == after
    assert torch.equal(program.module()(x), function(x))
