"""Tells a checkpoint from other files by its first bytes, never by its name; reads nothing further."""

from __future__ import annotations

from pathlib import Path

from runtimes.errors import BadCheckpoint, Missing

ZIP = b"PK"
LEGACY_TORCH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # torch's magic number, pickled

DOWNLOAD_AGAIN = "download it again, e.g. with `rwkv-export fetch OWNER/REPO/FILE`"
USE_THE_PTH = "export the .pth or .safetensors checkpoint that it was made from"

STRANGERS = (
    (b"version https://git-lfs.github.com/spec/", "is a git-lfs pointer, not the file itself", "run `git lfs pull`"),
    (b"<", "is a web page, not a checkpoint: you downloaded the page about the file", DOWNLOAD_AGAIN),
    (b"GGUF", "is a GGUF file (llama.cpp)", USE_THE_PTH),
    (b"fmgg", "is a ggml file (rwkv.cpp)", USE_THE_PTH),
    (b"tjgg", "is a ggml file (llama.cpp)", USE_THE_PTH),
    (b"lmgg", "is a ggml file", USE_THE_PTH),
    (b"\x89PNG", "is a PNG picture", None),
    (b"\x1f\x8b", "is gzip-compressed", "unpack it first"),
    (b"\x80", "is a Python pickle, which can run code, not a torch file; refused", "save it with torch.save"),
    (b"{", "is a JSON text, not a checkpoint", DOWNLOAD_AGAIN),
)
"""First bytes, what such a file is, what to do."""


def first_bytes(path: Path, count: int = 64) -> bytes:
    """The beginning of a file; raises Missing where it cannot be read, BadCheckpoint where it is empty."""
    try:
        with path.open("rb") as stream:
            head = stream.read(count)
    except OSError as error:
        raise Missing(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise BadCheckpoint(f"{path} is empty (0 bytes)", hint=DOWNLOAD_AGAIN)
    return head


def container(path: Path) -> str:
    """ "pth" or "safetensors"; raises BadCheckpoint saying what the file is instead."""
    head = first_bytes(path)
    if head.startswith((ZIP, LEGACY_TORCH)):
        return "pth"
    # safetensors: a little-endian length, then that many bytes of JSON.
    if head[8:9] == b"{" and not head.startswith(b"{"):
        return "safetensors"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, what, hint in STRANGERS:
        if text.startswith(magic) or head.startswith(magic):
            raise BadCheckpoint(f"{path} {what}", hint=hint)
    raise BadCheckpoint(
        f"{path} is neither a torch file nor safetensors: it starts with {head[:8]!r}",
        hint="RWKV checkpoints are .pth files, .safetensors files or Hugging Face folders",
    )
