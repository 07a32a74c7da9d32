"""Asks Linux to back the memory of a loaded session with huge pages; a hint: it never fails and changes no value.

Decode reads every weight once a token, so with 4 KiB pages it is the page walks that hold it up.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = 2 << 20  # bytes
ADVISE_COLLAPSE = 25  # MADV_COLLAPSE, Linux 6.1 and later: now, and whatever the system's default is
MAPS = Path("/proc/self/maps")

Regions = dict[int, int]
"""Start address to end address."""


@contextmanager
def huge_pages() -> Iterator[None]:
    """Within the block a session is loaded; private memory that appeared in it then moves to 2 MiB pages."""
    before = _regions()
    yield
    for start, end in _regions().items():
        if before.get(start) != end:
            _collapse(start, end)


def _regions() -> Regions:
    """Private anonymous writable regions that can hold a huge page; none where there is no /proc."""
    if not sys.platform.startswith("linux") or not MAPS.exists():
        return {}
    regions = {}
    for line in MAPS.read_text(encoding="utf-8").splitlines():
        span, access, _, _, inode, *_ = line.split()
        start, end = (int(address, 16) for address in span.split("-"))
        if access == "rw-p" and inode == "0" and end - start >= PAGE:
            regions[start] = end
    return regions


def _collapse(start: int, end: int) -> None:
    """Page by page, because the call gives up at the first one that cannot move."""
    advise = ctypes.CDLL(None).madvise
    first = -(-start // PAGE) * PAGE
    for address in range(first, end - PAGE + 1, PAGE):
        advise(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), ADVISE_COLLAPSE)
