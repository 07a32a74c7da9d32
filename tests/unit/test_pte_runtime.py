"""The pte runtime: its placement is that of the graph that decoding runs, wherever the manifest lists it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower

from exporter.quiet import quiet
from runtimes import manifest
from runtimes.backends import pte
from runtimes.contract import Artifact
from runtimes.errors import BadArtifact

STATE = manifest.StateTensor("memory", (1, 4), "float32", ("batch", "channel"), 0.0, "memory", "memory.next")


class Step(torch.nn.Module):
    """As many sines as tokens."""

    def forward(self, tokens: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for _ in range(len(tokens)):
            memory = torch.sin(memory)
        return memory * 2, memory + 1


def artifact(folder: Path, *sizes: int) -> Artifact:
    graphs = []
    for size in sizes:
        with quiet():
            program = torch.export.export(Step(), (torch.zeros(size, dtype=torch.int64), torch.zeros(STATE.shape)))
            (folder / f"{size}.pte").write_bytes(to_edge_transform_and_lower(program).to_executorch().buffer)
        graphs.append(manifest.Graph(size, f"{size}.pte", "tokens", "int64", "logits", "forward"))
    document = manifest.Manifest(
        schema=manifest.SCHEMA,
        model=manifest.Model("small", "0", 1, 4, 1, 4, 4, 1e-5, 0),
        source=manifest.Source("none", "none", 0, ""),
        target=manifest.Target("executorch-portable", "pte", "cpu", "fp32", "fp32"),
        precision=manifest.Precision("float32", "float32"),
        graphs=tuple(graphs),
        state=(STATE,),
        tokenizer=manifest.Tokenizer("none"),
        files=(),
        tools={},
    )
    return Artifact(folder, document)


@pytest.mark.parametrize("sizes", [(1, 3), (3, 1)])
def test_placement_is_of_the_single_token_graph(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    placed = pte.open_session(artifact(tmp_path, *sizes), "cpu").placement()
    assert placed.nodes["aten::sin"] == 1
    assert placed.observed == "pte:cpu"


def test_an_artifact_without_a_single_token_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="no single-token graph"):
        pte.open_session(artifact(tmp_path, 3), "cpu")
