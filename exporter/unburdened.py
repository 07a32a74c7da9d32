"""Spares toolchains that rewrite graphs again and again bookkeeping that nobody reads; it changes no program."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.fx.traceback import NodeSource

HISTORY: Any = NodeSource


@contextmanager
def unburdened() -> Iterator[None]:
    """Within the block nothing is searched for cycles, and what a node stems from is shared instead of copied.

    Lowering walks a graph some forty times. Each walk adds to every node's history and copies all of it, and makes so
    many objects that the garbage collector passes over the whole model again and again: a fifth of the time together.
    """
    collecting = gc.isenabled()
    gc.disable()
    HISTORY.__deepcopy__ = _itself
    try:
        yield
    finally:
        del HISTORY.__deepcopy__
        if collecting:
            gc.enable()


def _itself(source: Any, memo: dict[int, Any]) -> Any:
    """A history is never changed once it is made."""
    return source
