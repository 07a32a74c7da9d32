"""Describes the machine results were made on; what it cannot find out it leaves empty."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import psutil

from validation.outcome import Machine

PACKAGES = (
    "ai-edge-litert",
    "coreai-core",
    "coremltools",
    "executorch",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-ep-webgpu",
    "onnxruntime-gpu",
    "onnxruntime-qnn",
    "openvino",
    "rknn-toolkit-lite2",
    "rknn-toolkit2",
    "rwkv-export",
    "torch",
)
"""Distributions whose version can change a result; those that are installed are recorded."""

CLOCK_READINGS = 2000
CPUINFO = Path("/proc/cpuinfo")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe(name: str = "") -> Machine:
    """This machine and the Python that runs; `name` is what its owner calls it."""
    return Machine(
        system=f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}",
        cpu=_cpu(),
        cores=cores(),
        memory_bytes=psutil.virtual_memory().total,
        governor=_read(GOVERNOR).strip(),
        python=platform.python_version(),
        packages=_packages(),
        name=name,
    )


def now() -> str:
    """The time in UTC as results say it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def busy() -> float:
    """Share of the processors, 0 to 1, that all programs together used during a short look."""
    return float(psutil.cpu_percent(interval=0.3)) / 100


def clock() -> tuple[float, float]:
    """Of the clock that sessions read: the least difference it told over many readings, and what one takes; seconds."""
    ticks = [time.perf_counter() for _ in range(CLOCK_READINGS)]
    steps = [after - before for before, after in pairwise(ticks)]
    return min((step for step in steps if step > 0), default=0.0), (ticks[-1] - ticks[0]) / len(steps)


def stolen() -> tuple[float, float] | None:
    """Seconds of processor time since boot that a virtual machine's host gave to others, and of all there were."""
    times = psutil.cpu_times()
    if not hasattr(times, "steal"):
        return None
    return times.steal, sum(times) - times.guest - times.guest_nice  # user and nice have the guests' in them


def _cpu() -> str:
    """x86 says "model name", most Arm boards "Model" or "Hardware", Macs answer sysctl."""
    text = _read(CPUINFO)
    for key in ("model name", "Model", "Hardware"):
        if found := re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE):
            return found[1].strip()
    if platform.system() == "Darwin":
        asked = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return asked.stdout.strip()
    return platform.processor()


def cores() -> int:
    """Logical processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
