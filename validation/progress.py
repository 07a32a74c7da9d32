"""The progress that shows nothing, for callers who want none; the shape is exporter.contract.Progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def silent(text: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Accepts everything a progress bar is told, and says nothing."""
    yield lambda amount: None
