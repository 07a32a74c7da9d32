"""What the operating system's own meters say a token cost in joules; where none tells it says why.

All of them count whole processors or the whole machine, other programs and idling included.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any, Protocol

from runtimes.remote import is_remote
from validation.outcome import Energy

POWERCAP = Path("/sys/class/powercap")
SUPPLIES = Path("/sys/class/power_supply")
GAUGE_S = 10.0
"""Batteries tell their power every few seconds: shorter runs say nothing."""
POWERMETRICS = ("powermetrics", "--samplers", "cpu_power", "-i", "200")
COMBINED = re.compile(r"^Combined Power.*?: (\d+) mW", re.MULTILINE)


class Meter(Protocol):
    """Started before the tokens and stopped after them, once each."""

    def start(self) -> None: ...
    def stop(self, tokens: int, seconds: float) -> Energy: ...


class NoMeter:
    """Says why there is none."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def start(self) -> None:
        """Nothing to start."""

    def stop(self, tokens: int, seconds: float) -> Energy:
        """The reason."""
        return Energy(reason=self._reason)


class Rapl:
    """Linux' counters of the energy of processor packages and their memory, in microjoules."""

    def __init__(self, zones: list[Path]) -> None:
        self._zones = zones
        self._before: list[int] = []

    def start(self) -> None:
        """Read every counter."""
        self._before = [_number(zone / "energy_uj") for zone in self._zones]

    def stop(self, tokens: int, seconds: float) -> Energy:
        """Counters start again from 0 at max_energy_range_uj."""
        used = 0
        for zone, before in zip(self._zones, self._before, strict=True):
            spent = _number(zone / "energy_uj") - before
            used += spent if spent >= 0 else spent + _number(zone / "max_energy_range_uj")
        names = ", ".join(_text(zone / "name") for zone in self._zones)
        return Energy(used / 1e6 / tokens, f"RAPL: {names}") if used else Energy(reason="RAPL counted nothing")


class Battery:
    """Power drawn from a battery that discharges, read at both ends of the run."""

    def __init__(self, supply: Path) -> None:
        self._supply = supply
        self._before = 0.0

    def start(self) -> None:
        """Read the power."""
        self._before = self._watts()

    def stop(self, tokens: int, seconds: float) -> Energy:
        """Mean power times the time of a token."""
        name, watts = self._supply.name, (self._before + self._watts()) / 2
        if seconds < GAUGE_S:
            return Energy(reason=f"{name} needs a run of {GAUGE_S:.0f} s, this took {seconds:.1f} s: more --tokens")
        if _text(self._supply / "status") != "Discharging":
            return Energy(reason=f"{name} was plugged in during the run")
        return Energy(watts * seconds / tokens, f"battery {name}: the whole device")

    def _watts(self) -> float:
        """The sign of a current says which way it flows, differently from driver to driver."""
        if (self._supply / "power_now").exists():
            return abs(_number(self._supply / "power_now")) / 1e6
        return abs(_number(self._supply / "current_now")) * _number(self._supply / "voltage_now") / 1e12


class PowerMetrics:
    """Apple's powermetrics, running beside the tokens."""

    def start(self) -> None:
        """Start it."""
        self._process: Any = subprocess.Popen(
            POWERMETRICS, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def stop(self, tokens: int, seconds: float) -> Energy:
        """Mean power of its samples times the time of a token."""
        self._process.terminate()
        said, _ = self._process.communicate()
        watts = [int(found) / 1000 for found in COMBINED.findall(said)]
        if not watts:
            return Energy(reason=f"powermetrics gave no sample in {seconds:.1f} s: more --tokens")
        return Energy(statistics.fmean(watts) * seconds / tokens, "powermetrics: CPU, GPU and Neural Engine")


def meter(place: str) -> Meter:
    """The best meter of the machine of `place`, or one that says why there is none."""
    if is_remote(place):
        return NoMeter("not measured on other machines")
    find = {"Darwin": _of_a_mac, "Linux": _of_linux}.get(platform.system())
    return find() if find else NoMeter(f"no meter known on {platform.system()}")


def _of_linux() -> Meter:
    """Packages before batteries, because they count little else than the work."""
    zones = [zone for zone in sorted(POWERCAP.glob("intel-rapl:*")) if _counts(_text(zone / "name"))]
    closed = [zone for zone in zones if not os.access(zone / "energy_uj", os.R_OK)]
    if zones and not closed:
        return Rapl(zones)
    for supply in sorted(SUPPLIES.glob("*")):
        told = (supply / "power_now").exists() or (supply / "current_now").exists()
        if told and (_text(supply / "type"), _text(supply / "status")) == ("Battery", "Discharging"):
            return Battery(supply)
    if closed:
        return NoMeter(f"{closed[0] / 'energy_uj'} is for root only: sudo chmod a+r {POWERCAP}/intel-rapl:*/energy_uj")
    return NoMeter("this machine has neither RAPL counters nor a battery in use")


def _of_a_mac() -> Meter:
    if not shutil.which(POWERMETRICS[0]):
        return NoMeter("powermetrics is not in the PATH")
    return PowerMetrics() if os.geteuid() == 0 else NoMeter("powermetrics is for root only: run it with sudo")


def _counts(name: str) -> bool:
    """Cores and the integrated GPU are part of their package, "psys" counts packages again."""
    return name.startswith(("package", "dram"))


def _number(path: Path) -> int:
    """0 where it cannot be read: meters may vanish with their hardware."""
    text = _text(path)
    return int(text) if text.lstrip("-").isdecimal() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
