"""Reads torch files (.pth, .bin) without running code from them and without holding their data in memory."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from exporter.formats.sniff import DOWNLOAD_AGAIN, LEGACY_TORCH, first_bytes
from exporter.formats.stored import FLOATS, Stored, not_a_weight
from runtimes.errors import BadCheckpoint


def read(path: Path) -> dict[str, Stored]:
    """Names to tensors of a torch file; raises BadCheckpoint.

    Zip files (torch >= 1.6) stay mapped on disk. The format before that cannot be mapped and is read into memory.
    """
    legacy = first_bytes(path).startswith(LEGACY_TORCH)
    if not legacy:
        _check_zip(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols, of no use to who exports
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=not legacy)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from error
    except Exception as error:  # an altered pickle can raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadCheckpoint(f"{path} is damaged: {reason}", hint=DOWNLOAD_AGAIN) from error
    return {name: _stored(tensor) for name, tensor in _tensors(path, content).items()}


def _stored(tensor: Tensor) -> Stored:
    tensor = tensor.detach()
    return Stored(lambda: tensor)


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise BadCheckpoint(f"{path} is damaged: {error}", hint=DOWNLOAD_AGAIN) from error
    size = path.stat().st_size
    raise BadCheckpoint(
        f"{path} is truncated: its {size} bytes lack the directory that ends a torch file", hint=DOWNLOAD_AGAIN
    )


def _check_zip(path: Path) -> None:
    entries = _entries(path)
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise BadCheckpoint(
            f"{path} contains Python code (a TorchScript program), refused", hint="save model.state_dict() instead"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        listing = ", ".join(names[:3]) or "nothing"
        raise BadCheckpoint(f"{path} is a zip archive but not a torch file: it holds {listing}", hint="unpack it first")
    # Mapping a compressed entry would read its compressed bytes as weights.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise BadCheckpoint(f"{path} was packed again with compression", hint="use the file as torch.save wrote it")


def _refused(path: Path, reason: str) -> BadCheckpoint:
    found = re.search(r"GLOBAL (\S+)", reason)
    if found:
        return BadCheckpoint(
            f"{path} contains Python code (global {found[1]}), refused",
            hint="a checkpoint needs tensors only; get one from a source you trust, or as .safetensors",
        )
    detail = re.search(r"Unsupported \w+.*|Trying to .*", reason)
    return BadCheckpoint(
        f"{path} cannot be read without running code from it, refused: {(detail[0] if detail else reason)[:120]}",
        hint="get the checkpoint as .safetensors, or from a source you trust",
    )


def _tensors(path: Path, content: object) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise BadCheckpoint(
            f"{path} holds a {type(content).__name__} where a dict of named tensors is expected",
            hint="save model.state_dict()",
        )
    if not content:
        raise BadCheckpoint(f"{path} holds no tensors: its dict is empty")
    if "_strategy" in content:
        raise BadCheckpoint(
            f"{path} was converted by the rwkv package for {content['_strategy']}: its weights are altered",
            hint="export the checkpoint that it was made from",
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            part = f"what is below {name!r}" if isinstance(value, dict) else "model.state_dict()"
            raise BadCheckpoint(
                f"{path} holds {name!r} ({type(value).__name__}) where only named tensors are expected",
                hint=f"save {part} alone",
            )
        if value.dtype not in FLOATS.values():
            raise not_a_weight(path, name, value.dtype)
    return content
