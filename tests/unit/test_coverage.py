"""What delegates took is counted from the lowered program, and the saved file says the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn

from exporter.coverage import coverage
from exporter.quiet import quiet
from runtimes.errors import BadArtifact
from runtimes.pte.program import Program


class Small(nn.Module):
    """A table, which XNNPACK leaves outside, and two products, which it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.table(tokens))))


@pytest.fixture(scope="module", params=["xnnpack", "portable"])
def lowered(request: pytest.FixtureRequest) -> tuple[str, object]:
    with quiet(), torch.no_grad():
        program = torch.export.export(Small().eval(), (torch.zeros(3, dtype=torch.int64),))
        partitioner = [XnnpackPartitioner()] if request.param == "xnnpack" else []
        return request.param, to_edge_transform_and_lower({"decode": program}, partitioner={"decode": partitioner})


def test_operators_products_and_weights_are_counted_on_their_side(lowered: tuple[str, object]) -> None:
    name, edge = lowered
    found = coverage(edge.exported_program("decode"))
    products, table, weights = 3 * (8 * 16 + 16 * 4), 4 * 10 * 8, 4 * (8 * 16 + 16 + 16 * 4)
    assert found.outside["aten.embedding"] == 1
    if name == "xnnpack":
        assert found.delegates == {"XnnpackBackend": 1}
        assert found.inside == {"aten.linear": 2, "aten.relu": 1}
        assert found.outside == {"aten.embedding": 1}
        assert set(found.why) == {"aten.embedding"} and "looked up" in found.why["aten.embedding"]
        assert (found.macs_inside, found.macs_outside) == (products, 0)
        assert (found.weights_inside, found.weights_outside) == (weights, table)
    else:
        assert (found.delegates, found.inside, found.why) == ({}, {}, {})
        assert (found.macs_inside, found.macs_outside) == (0, products)
        assert (found.weights_inside, found.weights_outside) == (0, weights + table)


def test_the_saved_program_makes_the_calls_that_were_counted(lowered: tuple[str, object], tmp_path: Path) -> None:
    _, edge = lowered
    found = coverage(edge.exported_program("decode"))
    path = tmp_path / "model.pte"
    path.write_bytes(edge.to_executorch().buffer)
    calls = Program(path).calls("decode")
    assert {name: calls[name] for name in found.delegates} == dict(found.delegates)
    assert calls["aten::embedding"] == 1
    with pytest.raises(BadArtifact, match="no method 'prefill'"):
        Program(path).calls("prefill")


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(b"not a program at all")
    with pytest.raises(BadArtifact, match="is not an ExecuTorch program"):
        Program(path)
