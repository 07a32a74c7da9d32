"""Whether a program made of software, such as QEMU, plays the processor that this runs on; it asks no device."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path

KERNEL = Path("/proc/sys/kernel/arch")
"""The architecture the kernel was built for, since Linux 6.1. QEMU's user mode passes it on, and renames `uname -m`."""
CPUINFO = Path("/proc/cpuinfo")
SOFTWARE = re.compile(r"QEMU TCG|^CPU implementer\s*:\s*0x0+$", re.MULTILINE)
"""What QEMU calls processors of its own, and the implementer that Arm leaves to software. One that QEMU plays after a
real one, on a whole machine of its own, is not told apart."""
FAMILIES = {"arm": r"arm|aarch64", "x86": r"x86|i\d86|amd64"}


@cache
def played() -> bool:
    """As far as Linux tells; elsewhere, and where it does not tell, no."""
    here, kernel = platform.machine(), _read(KERNEL).strip()
    return bool(kernel and _family(kernel) != _family(here)) or bool(SOFTWARE.search(_read(CPUINFO)))


def _family(machine: str) -> str:
    """A processor runs programs of all bits of its family itself."""
    return next((name for name, names in FAMILIES.items() if re.match(names, machine.lower())), machine)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
