"""How many threads ExecuTorch computes with: one pool for the process, held by whatever is loaded."""

from __future__ import annotations

from weakref import WeakSet

from runtimes import threads
from runtimes.errors import WrongCall

_open: WeakSet[object] = WeakSet()
_first: list[int] = []  # the runtime's own choice, once it is known


def agreed(have: int) -> int:
    """The number of threads to set before a program is loaded, where the pool has `have`.

    Raises WrongCall while a program is held on another number.
    """
    if not _first:
        _first.append(have)
    wanted = threads.requested() or _first[0]
    if wanted != have and len(_open):
        raise WrongCall(
            f"{threads.VARIABLE} asks for {wanted}, and this process has an ExecuTorch program open on {have}",
            hint="close that session first",
        )
    return wanted


def hold(program: object) -> None:
    """The program is loaded, and the pool stays as it is."""
    _open.add(program)


def release(program: object) -> None:
    """The program is no longer loaded; the same as when nobody refers to it."""
    _open.discard(program)
