"""A recurrent network of a few numbers as an ExecuTorch artifact with a method for one token and one for three."""

from __future__ import annotations

from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
from torch import Tensor, nn

from exporter.quiet import quiet
from runtimes import manifest
from runtimes.contract import Artifact

VOCAB, WIDTH = 7, 4
METHODS = {"decode": 1, "prefill3": 3}
WEIGHTS = "model.ptd"
Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


class Step(nn.Module):
    """`memory` holds what was read, `seen` counts it, `kept` is handed through."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.mix, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens: Tensor, memory: Tensor, seen: Tensor, kept: Tensor) -> Outputs:
        rows = self.table(tokens)
        for index in range(len(tokens)):
            memory = torch.tanh(self.mix(memory) + rows[index : index + 1])
        return self.head(memory + kept), memory, seen + len(tokens), kept


def port(name: str, fill: float, *shape: int) -> manifest.StateTensor:
    axes = tuple(f"axis{index}" for index in range(len(shape)))
    return manifest.StateTensor(name, shape, "float32", axes, fill, name, f"{name}.next")


STATE = (port("memory", 0.0, 1, WIDTH), port("seen", 0.0, 1, 2, 2), port("kept", 0.5, 1, WIDTH))


def write(folder: Path, *, ids: torch.dtype = torch.int64, separate: bool = False) -> Artifact:
    """model.pte in `folder`; its weights, where they are separate, beside it."""
    with quiet():
        programs = {name: traced(size, ids) for name, size in METHODS.items()}
        if separate:
            mark(programs)
        edge = to_edge_transform_and_lower(programs, partitioner={name: [XnnpackPartitioner()] for name in programs})
        outside = (lambda node: Path(WEIGHTS).stem) if separate else False
        program = edge.to_executorch(ExecutorchBackendConfig(external_constants=outside))
        (folder / "model.pte").write_bytes(program.buffer)
        if separate:
            program.write_tensor_data_to_file(str(folder))
    return describe(folder, str(ids).removeprefix("torch."))


def traced(size: int, ids: torch.dtype) -> torch.export.ExportedProgram:
    state = (torch.full(tensor.shape, tensor.fill) for tensor in STATE)
    return torch.export.export(Step().eval(), (torch.zeros(size, dtype=ids), *state))


def mark(programs: dict[str, torch.export.ExportedProgram]) -> None:
    """Every constant is for the data file."""
    for program in programs.values():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                node.meta.setdefault("custom", {})["delegate_constant_tag"] = Path(WEIGHTS).stem


def describe(folder: Path, ids: str = "int64", *, file: str = "model.pte") -> Artifact:
    """The artifact around what lies in `folder`."""
    graphs = [manifest.Graph(size, file, "tokens", ids, "logits", name) for name, size in METHODS.items()]
    document = manifest.Manifest(
        schema=manifest.SCHEMA,
        model=manifest.Model("small", "0", 1, WIDTH, 1, WIDTH, VOCAB, 1e-5, 0),
        source=manifest.Source("none", "none", 0, ""),
        target=manifest.Target("executorch-xnnpack", "pte", "cpu", "fp32", "fp32"),
        precision=manifest.Precision("float32", "float32"),
        graphs=tuple(graphs),
        state=STATE,
        tokenizer=manifest.Tokenizer("none"),
        files=manifest.list_files(folder),
        tools={},
    )
    return Artifact(folder, document)
