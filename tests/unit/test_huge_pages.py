"""Memory that a session allocates moves to huge pages where Linux lets it, with the same values; elsewhere nothing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from runtimes import huge_pages

SIZE = 8 * huge_pages.PAGE


def huge_bytes(address: int) -> int:
    """How much of the region at `address` is in huge pages."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    for part in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text):
        start, end = (int(found, 16) for found in part.split(" ", 1)[0].split("-"))
        if start <= address < end:
            found = re.search(r"AnonHugePages:\s+(\d+) kB", part)
            return int(found[1]) * 1024 if found else 0
    raise AssertionError(f"no region holds {address:x}")


def kernel() -> tuple[int, ...]:
    release = Path("/proc/sys/kernel/osrelease").read_text(encoding="utf-8")
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="huge pages are asked for on Linux only")
def test_what_is_allocated_within_moves_to_huge_pages_unchanged() -> None:
    if kernel() < (6, 1):
        pytest.skip("Linux before 6.1 cannot move pages on request")
    before = np.ones(SIZE, np.uint8)
    with huge_pages.huge_pages():
        within = np.arange(SIZE // 8)
    assert huge_bytes(within.ctypes.data + SIZE // 2) >= SIZE // 2
    assert before.all()
    np.testing.assert_array_equal(within, np.arange(SIZE // 8))


def test_a_system_without_the_files_it_reads_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huge_pages, "MAPS", tmp_path / "none")
    monkeypatch.setattr(huge_pages, "_collapse", lambda *_: pytest.fail("nothing to move"))
    with huge_pages.huge_pages():
        within = np.ones(SIZE, np.uint8)
    assert within.all()
