"""Remembers where checkpoints were on this machine, so that an artifact can be compared with its own; holds no copy."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from exporter import bundled
from exporter.checkpoint import Checkpoint, open_checkpoint
from runtimes import manifest
from runtimes.errors import BadCheckpoint, Missing
from runtimes.files import write_text_atomically


def index() -> Path:
    """The index file, SHA-256 -> absolute path, in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "rwkv-export" / "checkpoints.json"


def remember(checkpoint: Checkpoint) -> None:
    """Note where a checkpoint is; a cache folder that cannot be written costs only the convenience."""
    known = _read()
    digest, place = checkpoint.sha256(), str(checkpoint.path.resolve())
    if known.get(digest) == place:
        return
    path = index()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, json.dumps({**known, digest: place}, indent=1) + "\n")
    except OSError:
        return


def find(source: manifest.Source) -> Path:
    """Where the checkpoint an artifact was made from is now, its hash checked; raises Missing."""
    noted = _read().get(source.sha256)
    candidates = [Path(noted)] if noted else []
    candidates += [Path(source.file), bundled.MODEL.with_name(source.file)]
    for path in candidates:
        # What lies there now may be another file, or no checkpoint at all.
        with contextlib.suppress(BadCheckpoint, Missing):
            if open_checkpoint(path).sha256() == source.sha256:
                return path
    raise Missing(
        f"the checkpoint {source.file} (sha256 {source.sha256[:12]}...) that the artifact was made from is not here",
        hint="name it with --checkpoint",
    )


def _read() -> dict[str, str]:
    try:
        known = json.loads(index().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
