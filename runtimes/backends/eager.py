"""PyTorch on CPU or CUDA: opens .pt2 artifacts with explicit state, after checking that they hold no pickled code."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import BadArtifact
from runtimes.session import Run, Tensors, explicit_session

READS = (".pt2",)
DEVICES = ("cpu", "cuda")

ENTRY = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/weights/(model_weights_config\.json|weight_\d+)|data/constants/(model_constants_config\.json|tensor_\d+)"
    r"|data/sample_inputs/model\.pt"
)
"""What torch.export.save writes of a plain program; other entries can be compiled libraries or older formats."""

OPERATOR = re.compile(r"torch\.ops\.aten\.(?!from_file)\w+\.\w+")


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
    modules = {}
    for graph in artifact.manifest.graphs:
        modules[graph.tokens] = _load(artifact.folder / graph.file, device)
    placed = partial(_placement, modules[min(modules)], device)
    if device == "cpu":
        return explicit_session(artifact, {tokens: runner(module) for tokens, module in modules.items()}, placed)
    from runtimes import cuda_graphs

    cuda_graphs.sum_widely()
    slots = cuda_graphs.pool([tensor.spec() for tensor in artifact.manifest.state], device)
    runs = {tokens: cuda_graphs.Recorded(module, tokens, slots, device) for tokens, module in modules.items()}
    return explicit_session(artifact, runs, placed, fetch=cuda_graphs.fetched)


def _placement(module: Any, device: str) -> Placement:
    """Parameters by the device that holds them: PyTorch computes where they are."""
    held = Counter(_named(parameter.device) for parameter in module.parameters())
    return Placement(f"eager:{device}", f"eager:{'+'.join(sorted({name.split()[0] for name in held}))}", dict(held))


def _named(device: Any) -> str:
    import torch

    return f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device.type)


def refuse_code(path: Path) -> None:
    """Raise BadArtifact for all but tensors and tensor operators: torch unpickles and evaluates what else it finds."""
    from torch.export.pt2_archive import PT2ArchiveReader

    try:
        with PT2ArchiveReader(str(path)) as archive:  # torch's own: two readers of one zip file need not agree
            found = next(_code(archive), None)
    except Exception as error:  # json, KeyError, AssertionError, pickle and torch each have their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadArtifact(f"{path} is not a plain torch.export archive: {reason}", hint="export again") from error
    if found:
        raise BadArtifact(f"{path} can run code: it holds {found}; refused", hint="export again")


def _code(archive: Any) -> Iterator[str]:
    """What the archive holds that is neither a tensor nor an operator on tensors."""
    import torch

    names = archive.get_file_names()
    yield from (f"the entry {name}" for name in names if not ENTRY.fullmatch(name) or names.count(name) > 1)
    for folder in ("weights", "constants"):
        config = json.loads(archive.read_bytes(f"data/{folder}/model_{folder}_config.json"))["config"]
        for name, payload in config.items():
            if payload["use_pickle"] or not payload["path_name"].startswith(("weight_", "tensor_")):
                yield f"{name} as a pickled object"
    torch.load(io.BytesIO(archive.read_bytes("data/sample_inputs/model.pt")), weights_only=True)
    yield from _expressions(json.loads(archive.read_bytes("models/model.json")))


def _expressions(program: Any) -> Iterator[str]:
    """Calls of other functions, and texts that torch would evaluate, anywhere in the serialised program."""
    if isinstance(program, list):
        for item in program:
            yield from _expressions(item)
    elif isinstance(program, dict):
        for key, item in program.items():
            if key == "target" and not OPERATOR.fullmatch(str(item)):
                yield f"a call of {item}"
            elif key in ("expr_str", "guards_code") and item:
                yield f"the expression {item}"
            yield from _expressions(item)


def program(path: Path) -> Any:
    """The program of an archive that holds no code; raises BadArtifact."""
    from torch.export.pt2_archive._package import load_pt2  # torch.export.load would try an older format next

    refuse_code(path)
    try:
        return load_pt2(str(path)).exported_programs["model"]
    except Exception as error:  # torch raises what it meets: RuntimeError, KeyError, its own families
        raise BadArtifact(f"torch cannot load {path}: {error}", hint="export again") from error


def _load(path: Path, device: str) -> Any:
    from torch.export.passes import move_to_device_pass

    loaded = program(path)
    if device != "cpu":
        loaded = move_to_device_pass(loaded, device)
    return loaded.module(check_guards=False)


def runner(module: Any) -> Run:
    """A step module as a session calls it, in NumPy arrays that share memory with its tensors."""
    import torch

    @torch.no_grad()
    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        logits, *new = module(torch.from_numpy(tokens), *map(torch.from_numpy, state))
        return logits.numpy(), tuple(tensor.numpy() for tensor in new)

    return run
