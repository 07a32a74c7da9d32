"""The memory of the test process, read the Linux way."""

from __future__ import annotations

import re
from pathlib import Path


def peak() -> int:
    """The largest resident set since the last `forget_peak`, mapped files included, in bytes."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Measure from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def mapped() -> int:
    """The part of the resident set that is pages of files, in bytes."""
    return _status("RssFile")


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024
