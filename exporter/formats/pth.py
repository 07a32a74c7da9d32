"""Reads and writes torch files (.pth, .bin) without running code from them or holding their data in memory.

Of a zip file torch reads only the pickle, by the unpickler of `torch.load(weights_only=True)`. `torch.load` to the meta
device, which is made for this, computes where tensors lie instead of looking: wrong, without a word, in a file that was
packed again.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._weights_only_unpickler import Unpickler

from exporter.formats.sniff import DOWNLOAD_AGAIN, LEGACY_TORCH, first_bytes
from exporter.formats.stored import FLOATS, Stored, fill, in_file, not_a_weight
from runtimes.errors import BadCheckpoint

ENCRYPTED = 1
"""The flag of a zip file's entry."""


def read(path: Path) -> dict[str, Stored]:
    """Names to tensors of a torch file; raises BadCheckpoint.

    Zip files (torch >= 1.6) stay on disk. The format before that does not say where its tensors lie and is read into
    memory.
    """
    legacy = first_bytes(path).startswith(LEGACY_TORCH)
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols, of no use to who exports
            content = torch.load(path, map_location="cpu", weights_only=True) if legacy else _mapped(path)
    except BadCheckpoint:
        raise
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
    placed = cast(dict[str, Tensor], _mapped(path))
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


def _mapped(path: Path) -> object:
    """What a zip file pickles, its tensors on the meta device; raises whatever an altered one makes of it."""
    if not zipfile.is_zipfile(path):
        raise BadCheckpoint(
            f"{path} is truncated: its {path.stat().st_size} bytes lack the directory that ends a torch file",
            hint=DOWNLOAD_AGAIN,
        )
    with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        pickled = _pickled(path, stream, archive)
        root, storages = pickled.filename.removesuffix("data.pkl"), dict[str, Any]()
        untyped, typed = cast(Any, torch.UntypedStorage), cast(Any, torch.TypedStorage)

        def storage(reference: tuple[Any, ...]) -> Any:
            _, kind, key, _, count = reference
            if key not in storages:
                entry = archive.getinfo(f"{root}data/{key}")
                if count * kind.dtype.itemsize != entry.file_size:
                    raise ValueError(f"{entry.filename} has {entry.file_size} bytes for {count} values {kind.dtype}")
                raw = untyped(entry.file_size, device="meta")
                raw._checkpoint_offset = _start(stream, entry)
                storages[key] = typed(wrap_storage=raw, dtype=kind.dtype, _internal=True)
            return storages[key]

        unpickler: Any = Unpickler(io.BytesIO(_bytes(stream, archive, pickled)), encoding="utf-8")
        unpickler.persistent_load = storage
        return unpickler.load()


def _start(stream: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Where the data of an entry begins: after its own header, whose lengths are not those of the directory."""
    stream.seek(entry.header_offset)
    name, extra = struct.unpack("<26x2H", stream.read(30))
    return entry.header_offset + 30 + int(name) + int(extra)


def _bytes(stream: IO[bytes], archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """An entry, held to its checksum unless that is 0: torch can be told to compute none."""
    if entry.CRC:
        return archive.read(entry)
    stream.seek(_start(stream, entry))
    return stream.read(entry.file_size)


def _pickled(path: Path, stream: IO[bytes], archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The entry that lists the tensors; raises BadCheckpoint for what is no torch file or cannot be mapped."""
    names, entries = archive.namelist(), archive.infolist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise BadCheckpoint(
            f"{path} contains Python code (a TorchScript program), refused", hint="save model.state_dict() instead"
        )
    pickled = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if not pickled:
        listing = ", ".join(names[:3]) or "nothing"
        raise BadCheckpoint(f"{path} is a zip archive but not a torch file: it holds {listing}", hint="unpack it first")
    root = pickled[0].filename.removesuffix("data.pkl")
    if strangers := [name for name in names if not name.startswith(root)]:
        raise BadCheckpoint(f"{path} holds {strangers[0]!r} beside {root}", hint="use the file as torch.save wrote it")
    # Mapping what is compressed or encrypted would read that as weights.
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & ENCRYPTED for entry in entries):
        raise BadCheckpoint(
            f"{path} was packed again with compression or a password", hint="use the file as torch.save wrote it"
        )
    orders = [entry for entry in entries if entry.filename.endswith("/byteorder")]
    if any(_bytes(stream, archive, order) == b"big" for order in orders):
        raise BadCheckpoint(f"{path} was written on a big-endian machine", hint="save it again on this one")
    return pickled[0]


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
