"""How many threads a session may use; one setting for every runtime that lets us choose."""

from __future__ import annotations

import os

from runtimes.errors import WrongCall

VARIABLE = "RWKV_EXPORT_THREADS"


def requested() -> int:
    """The number in RWKV_EXPORT_THREADS, or 0: the runtime's own choice. Raises WrongCall for anything else."""
    text = os.environ.get(VARIABLE, "0")
    if not text.isdecimal():
        raise WrongCall(f"{VARIABLE} is {text!r}, expected a number of threads", hint="0, or unset: as many as fit")
    return int(text)
