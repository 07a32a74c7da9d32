"""How long work tells somebody that it goes on; draws nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Told about long work: `with progress("writing weights", total=bytes) as advance: advance(n)`."""

    def __call__(self, text: str, total: int | None = None) -> AbstractContextManager[Advance]: ...


@contextmanager
def silent(text: str, total: int | None = None) -> Iterator[Advance]:
    """Progress for callers who want none."""
    yield lambda amount: None
