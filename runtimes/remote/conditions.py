"""How warm a machine is and how fast its processor may run: what Linux and Android tell in files, read as text."""

from __future__ import annotations

import re
import statistics
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from runtimes.remote import is_remote, machine

COMMAND = (
    "for zone in /sys/class/thermal/thermal_zone*; do"
    ' [ -r "$zone/temp" ] && echo "zone $(cat "$zone/type") $(cat "$zone/temp")"; done;'
    " for core in /sys/devices/system/cpu/cpu[0-9]*; do"
    ' [ -r "$core/cpufreq/scaling_governor" ] && echo "core ${core##*/cpu} $(cat "$core/cpufreq/scaling_governor")'
    ' $(cat "$core/cpufreq/scaling_cur_freq") $(cat "$core/cpufreq/scaling_max_freq")'
    ' $(cat "$core/cpufreq/cpuinfo_max_freq")"; done 2>/dev/null;'
    " if command -v dumpsys >/dev/null; then dumpsys thermalservice; dumpsys battery; fi 2>/dev/null; true"
)
"""For a POSIX shell; prints one line for each thermal zone and each core, of those that can be read.

Android, whose zones its shell may not read, has services that tell: https://source.android.com/docs/core/power/thermal-mitigation.
"""

SERVICE = re.compile(r"Temperature\{mValue=(-?[\d.]+), mType=\d+, mName=([^,}]+), mStatus=\d+\}")
BATTERY = re.compile(r"^\s*temperature: (-?\d+)$", re.MULTILINE)  # in tenths
STATUS = re.compile(r"^\s*Thermal Status: (\d+)$", re.MULTILINE)
THROTTLING = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""Android's names of its numbers, PowerManager.THERMAL_STATUS_*."""

WARMER = 10.0  # kelvin in one measurement, from which on it is worth a word
CAPPED = 0.98  # of the highest frequency, below which a core is held back


@dataclass(frozen=True)
class Conditions:
    """Nothing that a machine does not tell is guessed.

    celsius:    temperature by thermal zone
    governors:  what decides on frequencies, by core
    mhz:        current frequency by core
    allowed:    the highest frequency a core may take now / the highest it was made for
    throttling: how much the system holds itself back, as Android says it: an index into THROTTLING
    """

    celsius: Mapping[str, float] = field(default_factory=dict)
    governors: Mapping[int, str] = field(default_factory=dict)
    mhz: Mapping[int, float] = field(default_factory=dict)
    allowed: Mapping[int, float] = field(default_factory=dict)
    throttling: int | None = None


def at(place: str) -> Conditions:
    """Of the machine of a place, this one unless it names another; nothing where it cannot be asked."""
    if is_remote(place):
        return machine(place).conditions()
    try:
        done = subprocess.run(["sh", "-c", COMMAND], capture_output=True, text=True, check=False)
    except OSError:  # no such shell, as on Windows
        return Conditions()
    return parse(done.stdout)


def parse(text: str) -> Conditions:
    """What COMMAND printed; lines that are of no such form are passed over."""
    celsius: dict[str, float] = {}
    cores: dict[int, tuple[str, float, float]] = {}
    for line in text.splitlines():
        kind, _, rest = line.strip().partition(" ")
        words = rest.split()
        if kind == "zone" and len(words) >= 2 and words[-1].lstrip("-").isdecimal():
            name, degrees = "_".join(words[:-1]), int(words[-1])
            celsius[f"{name}.{len(celsius)}" if name in celsius else name] = degrees / (
                1000 if abs(degrees) > 1000 else 1
            )
        elif kind == "core" and len(words) == 5 and all(word.isdecimal() for word in (words[0], *words[2:])):
            now, limit, made = map(float, words[2:])
            cores[int(words[0])] = words[1], now / 1000, limit / made if made else 1.0
    celsius |= {name: float(degrees) for degrees, name in SERVICE.findall(text)}
    if battery := BATTERY.search(text):
        celsius["battery"] = int(battery[1]) / 10
    status = STATUS.search(text)
    governors, mhz, allowed = ({core: values[at] for core, values in cores.items()} for at in range(3))
    return Conditions(celsius, governors, mhz, allowed, int(status[1]) if status else None)  # type: ignore[arg-type]


def remarks(before: Conditions, after: Conditions) -> list[str]:
    """What is worth a word about a measurement between the two, each with advice; temperatures always, where known."""
    found = []
    shared = [name for name in before.celsius if name in after.celsius]
    if shared:
        name = max(shared, key=lambda zone: after.celsius[zone])
        start, end = before.celsius[name], after.celsius[name]
        advice = ": it heats up, let it rest with --cool-down" if end - start >= WARMER else ""
        found.append(f"warmest zone {name}: {start:.1f} °C before, {end:.1f} °C after{advice}")
    if after.throttling:
        level = THROTTLING[min(after.throttling, len(THROTTLING) - 1)]
        found.append(f"Android holds it back because of heat, {level}: let it rest with --cool-down")
    others = sorted(set(after.governors.values()) - {"performance"})
    if others:
        found.append(f"CPU governor {', '.join(others)}: frequencies follow the load; performance holds them")
    if after.allowed and (share := min(after.allowed.values())) < CAPPED:
        found.append(f"a core may take {share:.0%} of its highest frequency only: throttled, or set so")
    if after.mhz:
        found.append(f"core frequencies after: median {statistics.median(after.mhz.values()):.0f} MHz")
    return found
