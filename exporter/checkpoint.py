"""Opens a checkpoint, whatever its container and naming, as one lazy mapping in BlinkDL names; converts no values."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from exporter.formats import huggingface, naming, pth, safetensors, sniff
from exporter.formats.stored import Stored
from runtimes import manifest
from runtimes.errors import BadCheckpoint, Missing

READERS = {"pth": pth.read, "safetensors": safetensors.read}


class Checkpoint(Mapping[str, Tensor]):
    """BlinkDL tensor names to tensors. A tensor is a view of the file: it takes memory for what was read of it, until
    it is dropped, and must not be written to.

    path:   as given
    format: "pth", "safetensors" or "huggingface" (a folder)
    name:   of the file without its suffix, or of the folder, usable as a folder name
    files:  what was opened; bytes: their total size
    """

    def __init__(self, path: Path, format: str, files: Sequence[Path], tensors: Mapping[str, Stored]) -> None:
        self.path = path
        self.format = format
        own = _own_name(path)
        stem = own if path.is_dir() else Path(own).stem
        self.name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "model"
        self.files = tuple(files)
        self.bytes = sum(file.stat().st_size for file in files)
        self._tensors = dict(tensors)
        self._sha256: str | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].read()

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def sha256(self) -> str:
        """Hash of the file; of several files, hash over their sorted `name sha256` lines. Computed once."""
        if self._sha256 is None:
            hashes = {file.name: manifest.sha256(file) for file in self.files}
            lines = "".join(f"{name} {digest}\n" for name, digest in sorted(hashes.items()))
            (first, *others) = hashes.values()
            self._sha256 = hashlib.sha256(lines.encode()).hexdigest() if others else first
        return self._sha256

    def source(self) -> manifest.Source:
        """What the manifest records about where an artifact came from."""
        return manifest.Source(_own_name(self.path), self.format, self.bytes, self.sha256())


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a .pth or .safetensors file or a Hugging Face folder, told apart by content.

    Raises Missing (no such file) or BadCheckpoint (what is wrong with it). Never runs code from the file.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise _no_such_file(path)
    format = sniff.container(path)
    return Checkpoint(path, format, [path], naming.blinkdl(READERS[format](path)))


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise BadCheckpoint when a tensor holds NaN or infinite values, saying how many."""
    ends = torch.stack(torch.aminmax(tensor)) if tensor.numel() else tensor  # NaN if any value is; no temporaries
    if bool(torch.isfinite(ends).all()):
        return
    nan, inf = int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())
    raise BadCheckpoint(
        f"{name} holds {nan} NaN and {inf} Inf of {tensor.numel()} values",
        hint="the checkpoint is damaged or its training diverged; export another one",
    )


def _open_folder(path: Path) -> Checkpoint:
    folder = huggingface.open_folder(path)
    found: dict[str, Stored] = {}
    for shard in folder.shards:
        found |= READERS[sniff.container(shard)](shard)
    if absent := sorted(folder.promised - set(found)):
        raise BadCheckpoint(f"{path} lacks {absent[0]}, which its index names", hint="download the folder again")
    tensors = naming.blinkdl(found)
    if not any(name.startswith("blocks.") for name in tensors):
        model_type = folder.config.get("model_type")
        raise BadCheckpoint(
            f"{path} ({model_type=}) is not a known RWKV folder: it holds {', '.join(sorted(found)[:3])}",
            hint="known are the tensor names of BlinkDL, flash-linear-attention (RWKV-7) and transformers",
        )
    if folder.config.get("tie_word_embeddings") and "head.weight" not in tensors and "emb.weight" in tensors:
        tensors["head.weight"] = tensors["emb.weight"]
    return Checkpoint(path, "huggingface", [*folder.described_by, *folder.shards], tensors)


def _own_name(path: Path) -> str:
    # Files of the Hub cache are links to hashes, its folders are named by commit below models--owner--name/snapshots.
    if not path.is_dir():
        return path.name
    full = path.resolve()
    cached = full.parent.name == "snapshots" and full.parent.parent.name.startswith("models--")
    return full.parent.parent.name.rpartition("--")[2] if cached else full.name


def _no_such_file(path: Path) -> Missing:
    hint = None
    if path.parent.is_dir():
        found = sorted(item.name for item in path.parent.iterdir() if item.suffix in (".pth", ".safetensors"))
        hint = f"{path.parent} has {', '.join(found[:5])}" if found else f"{path.parent} has no checkpoints"
    elif not path.is_absolute():
        hint = f"if it is a file of the Hugging Face Hub: `rwkv-export fetch {path}`"
    return Missing(f"no such file: {path}", hint=hint)
