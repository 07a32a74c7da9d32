"""Reads and writes torch files (.pth, .bin) without running code from them or holding their data in memory."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from exporter.formats.sniff import DOWNLOAD_AGAIN, LEGACY_TORCH, first_bytes
from exporter.formats.stored import FLOATS, Stored, fill, in_file, not_a_weight
from runtimes.errors import BadCheckpoint


def read(path: Path) -> dict[str, Stored]:
    """Names to tensors of a torch file; raises BadCheckpoint.

    Zip files (torch >= 1.6) stay on disk. The format before that does not say where its tensors lie and is read into
    memory.
    """
    legacy = first_bytes(path).startswith(LEGACY_TORCH)
    if not legacy:
        _check_zip(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols, of no use to who exports
            content = torch.load(path, map_location="cpu" if legacy else "meta", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from error
    except Exception as error:  # an altered pickle can raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadCheckpoint(f"{path} is damaged: {reason}", hint=DOWNLOAD_AGAIN) from error
    return {name: _stored(path, name, tensor.detach()) for name, tensor in _tensors(path, content).items()}


def write(
    path: Path, dtype: torch.dtype, shapes: Mapping[str, tuple[int, ...]], value: Callable[[str], Tensor]
) -> None:
    """Write tensors of one type, each asked for once, by name: torch writes the file with holes, which are then filled.

    The checksums of the zip entries stay zero; torch.load does not look at them. Raises OSError.
    """
    with FakeTensorMode():
        shells = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
    try:
        with path.open("wb") as stream, torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(shells, stream)
    except RuntimeError as error:
        raise error.__context__ or error from None  # torch hides what the stream raised
    placed = torch.load(path, map_location="meta", weights_only=True)
    fill(path, {name: _offset(tensor) for name, tensor in placed.items()}, value)


def _stored(path: Path, name: str, tensor: Tensor) -> Stored:
    if tensor.numel() * tensor.dtype.itemsize > tensor.untyped_storage().nbytes():
        raise BadCheckpoint(
            f"{path}: {name} of shape {list(tensor.shape)} has more values than the file holds",
            hint="save it with .contiguous()",
        )
    return in_file(path, name, _offset(tensor), like=tensor) if tensor.is_meta else Stored(lambda: tensor)


def _offset(tensor: Tensor) -> int:
    """Where in the file a tensor that was loaded to the meta device has its first element, in bytes."""
    start = cast(int, tensor.untyped_storage()._checkpoint_offset)
    return start + int(tensor.storage_offset()) * tensor.dtype.itemsize


def _check_zip(path: Path) -> None:
    try:
        if not zipfile.is_zipfile(path):
            raise BadCheckpoint(
                f"{path} is truncated: its {path.stat().st_size} bytes lack the directory that ends a torch file",
                hint=DOWNLOAD_AGAIN,
            )
        with zipfile.ZipFile(path) as archive:
            _check_archive(path, archive)
    # zipfile raises NotImplementedError for a compression that it lacks, RuntimeError for encryption
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OSError, EOFError) as error:
        raise BadCheckpoint(f"{path} is damaged: {error}", hint=DOWNLOAD_AGAIN) from error


def _check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise BadCheckpoint(
            f"{path} contains Python code (a TorchScript program), refused", hint="save model.state_dict() instead"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        listing = ", ".join(names[:3]) or "nothing"
        raise BadCheckpoint(f"{path} is a zip archive but not a torch file: it holds {listing}", hint="unpack it first")
    # Mapping a compressed entry would read its compressed bytes as weights.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise BadCheckpoint(f"{path} was packed again with compression", hint="use the file as torch.save wrote it")
    for entry in archive.infolist():  # torch divides by it: 0 would end the process
        if entry.filename.endswith("/.storage_alignment") and not re.fullmatch(rb"[1-9]\d{0,5}", archive.read(entry)):
            raise BadCheckpoint(f"{path} is damaged: its storage alignment is no number of bytes", hint=DOWNLOAD_AGAIN)
    if any(archive.read(name) == b"big" for name in names if name.endswith("/byteorder")):
        raise BadCheckpoint(f"{path} was written on a big-endian machine", hint="save it again on this one")


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
