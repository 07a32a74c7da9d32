"""What a manifest is not believed: names that leave its folder, links, sizes that no model has; it opens no file."""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from runtimes.errors import BadArtifact

if TYPE_CHECKING:
    from runtimes.manifest import Manifest

INPUTS = ("int32", "int64", "float16", "float32")
MOST_STATE = 1 << 30
"""Bytes of all state tensors; RWKV-7 of 14 B parameters has 70 MB in float32."""
MOST_VOCAB = 1 << 22
LONGEST_PART, LONGEST_NAME = 255, 1024
"""Bytes of a file's name on all systems, characters of a path inside a folder."""
MOST_TOKENS = 1 << 16
"""Of one call of a graph."""


def check(manifest: Manifest, path: Path) -> None:
    """Raise BadArtifact, naming the manifest's `path`, for a name or a number that cannot be meant."""
    for file in manifest.files:
        if leaves(file.path):
            raise BadArtifact(f"{path}: file path {file.path!r} leaves the artifact folder, or is too long")
        if file.bytes < 0 or len(file.sha256) != 64 or set(file.sha256) - set(string.hexdigits):
            raise BadArtifact(f"{path}: {file.path} has no size and SHA-256 that a file can have", hint="export again")
    for what in _impossible(manifest):
        raise BadArtifact(f"{path}: {what}", hint="export again")


def leaves(name: str) -> bool:
    """Whether a relative path with forward slashes might lead out of its folder, or is longer than names can be."""
    parts = PurePosixPath(name).parts
    if len(name) > LONGEST_NAME or any(len(part.encode(errors="surrogatepass")) > LONGEST_PART for part in parts):
        return True
    return not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name


def refuse_links(folder: Path, name: str) -> None:
    """Raise BadArtifact where `name`, or a folder on the way to it, is a link; `folder` itself may be one."""
    path = folder
    for part in PurePosixPath(name).parts:
        path /= part
        if path.is_symlink():
            raise BadArtifact(
                f"{path} is a link; an artifact holds its files itself", hint="copy the folder with `cp -rL`"
            )


def _impossible(manifest: Manifest) -> Iterator[str]:
    if not 0 < manifest.model.vocab <= MOST_VOCAB:
        yield f"a vocabulary of {manifest.model.vocab}"
    for graph in manifest.graphs:
        if not 0 < graph.tokens <= MOST_TOKENS:
            yield f"a graph of {graph.tokens} tokens"
        if graph.input_dtype not in INPUTS:
            yield f"an input of type {graph.input_dtype!r}"
        if graph.lookup and not 0 < graph.lookup.width <= MOST_VOCAB:
            yield f"rows of {graph.lookup.width} numbers"
    for tensor in manifest.state:
        if min(tensor.shape, default=1) < 1:
            yield f"state {tensor.name} of shape {list(tensor.shape)}"
    if (size := sum(tensor.spec().nbytes for tensor in manifest.state)) > MOST_STATE:
        yield f"a state of {size} bytes, more than {MOST_STATE}"
