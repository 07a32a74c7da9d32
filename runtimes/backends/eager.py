"""PyTorch on CPU or CUDA: opens .pt2 artifacts with explicit state, after checking that they hold no pickled code."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import BadArtifact
from runtimes.session import Run, Tensors, explicit_session

READS = (".pt2",)
DEVICES = ("cpu", "cuda")


def missing(device: str) -> str | None:
    """Whether PyTorch is installed and sees the device."""
    try:
        import torch
    except ImportError:
        return "the Python package torch is not installed"
    if device == "cuda" and not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    return None


def open_session(artifact: Artifact, device: str) -> Session:
    """Load every program of the artifact onto `device`; raises BadArtifact."""
    runs: dict[int, Run] = {}
    for graph in artifact.manifest.graphs:
        path = artifact.folder / graph.file
        _refuse_code(path)
        runs[graph.tokens] = _runner(_load(path, device), device)
    placed = Placement(f"eager:{device}", f"eager:{device}")
    return explicit_session(artifact, runs, lambda: placed)


def _refuse_code(path: Path) -> None:
    """Raise BadArtifact unless the archive's payloads are plain tensors: torch.export.load would unpickle others."""
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                inner = name.partition("/")[2]
                if inner.startswith("data/") and inner.endswith("_config.json"):
                    payloads = json.loads(archive.read(name))["config"].values()
                    if any(p["use_pickle"] or not p["path_name"].startswith(("weight_", "tensor_")) for p in payloads):
                        raise BadArtifact(f"{path} holds pickled Python objects in {name}; refused")
                elif inner.endswith(".pt"):
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    except BadArtifact:
        raise
    except Exception as error:  # zipfile, json, KeyError, pickle and torch each have their own
        raise BadArtifact(f"{path} is not a plain torch.export archive: {error}", hint="export again") from error


def _load(path: Path, device: str) -> Any:
    import torch
    from torch.export.passes import move_to_device_pass

    program = torch.export.load(path)
    if device != "cpu":
        program = move_to_device_pass(program, device)
    return program.module(check_guards=False)


def _runner(module: Any, device: str) -> Run:
    import torch

    @torch.no_grad()
    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        inputs = [torch.from_numpy(tokens), *map(torch.from_numpy, state)]
        logits, *new = module(*(tensor.to(device) for tensor in inputs))
        return logits.cpu().numpy(), tuple(tensor.cpu().numpy() for tensor in new)

    return run
