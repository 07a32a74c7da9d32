"""The exceptions every part raises on bad input; not a place for messages about our own bugs.

RwkvExportError          what went wrong, with the value; `hint` says what to do; `exit_code` is the process's
├── CheckFailed     (1)  the check ran and the answer is no
├── WrongCall       (2)  an argument cannot be meant as given
│   ├── BadCheckpoint    the file is not a checkpoint that can be exported
│   └── BadArtifact      the folder is not an artifact, or not the one that was written
└── Missing         (3)  this machine lacks something: a package, a device, a file, disk space
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class RwkvExportError(Exception):
    """Base of all deliberate errors: `message` is one line with the offending value, `hint` one action.

    The value may come from a file of whoever: what could steer a terminal stands escaped.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = harmless(" ".join(message.splitlines()))
        self.hint = None if hint is None else harmless(hint)
        super().__init__(self.message)


class CheckFailed(RwkvExportError):
    """A check was carried out and failed."""

    exit_code = 1


class WrongCall(RwkvExportError):
    """An argument cannot be meant as given."""

    exit_code = 2


class BadCheckpoint(WrongCall):
    """A checkpoint is truncated, malicious, incomplete or of a version that cannot be exported."""


class BadArtifact(WrongCall):
    """An artifact folder is incomplete, altered, or written by an incompatible schema."""


class Missing(RwkvExportError):
    """This machine lacks what the request needs."""

    exit_code = 3


def absent(error: Exception) -> Missing | None:
    """What an import that found nothing means where ours depends on that package, as on a bare device; else None."""
    from importlib.metadata import PackageNotFoundError, requires

    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    package = error.name.partition(".")[0]
    try:
        declared = requires("rwkv-export") or []
    except PackageNotFoundError:
        declared = []
    if package not in {re.split(r"[^\w-]", line)[0].replace("-", "_").lower() for line in declared}:
        return None
    return Missing(
        f"this needs the Python package {package}, which is not installed here",
        hint=f"pip install {package}, or rwkv-export with all that it depends on",
    )


def harmless(text: str) -> str:
    """The text with everything escaped that neither prints nor ends a line."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest known words first, then all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    listing = f"known: {', '.join(known)}"
    return f"did you mean {close[0]!r}? {listing}" if close else listing
