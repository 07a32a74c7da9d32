"""The step as a torch.export program (.pt2), stepped by PyTorch itself: for servers, and as a baseline."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

import torch

from exporter import graph, ports
from exporter.contract import Job, ModelSpec, Target, Written
from exporter.passes import torch_half
from exporter.quiet import quiet
from runtimes.manifest import Graph, Precision

if TYPE_CHECKING:
    from torch.export import ExportedProgram

TARGETS = (
    Target(
        name="torch",
        summary="PyTorch itself (.pt2), on CPU or CUDA",
        runtime="eager",
        device="cpu",
        precisions={"fp32": "fp32", "fp16": "fp16", "bf16": "bf16"},
        prefill=True,
        also_runs=("eager:cuda",),
    ),
)

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def missing() -> str | None:
    """Everything it needs is a core dependency."""
    return None


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Every combination works."""


def export(job: Job, folder: Path) -> Written:
    """Write decode.pt2 and one prefill{n}.pt2 a size; each file holds the weights."""
    named, graphs, stored = ports.own(job.spec), [], TYPES[job.precision]
    if stored != torch.float32:
        named = torch_half.halve(job.model, named, stored)
    graph.load_weights(job.model, job.progress)
    for tokens in (1, *job.prefill):
        name = "decode" if tokens == 1 else f"prefill{tokens}"
        with job.progress(f"tracing and writing {name}"), quiet():
            program = graph.trace(job.model, named.arguments(tokens))
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # it says where we were built
            _save(program, folder / f"{name}.pt2")
        graphs.append(Graph(tokens, f"{name}.pt2", named.tokens, "int64", named.logits))
    name = str(stored).removeprefix("torch.")
    kept = () if stored == torch.float32 else (torch_half.KEPT,)
    return Written(tuple(graphs), named.state, Precision(name, name, kept), {"torch": version("torch")})


def _save(program: ExportedProgram, path: Path) -> None:
    with path.open("wb") as file:
        stream = _Patient(file)
        torch.export.save(program, cast(IO[bytes], stream))
    if stream.error:
        raise stream.error


class _Patient(io.RawIOBase):
    """Keeps an OSError for later: torch's C++ writer ends the process where a write fails, as on a full disk."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def write(self, data: Any) -> int:
        """All of `data`, or nothing since the first failure."""
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)
