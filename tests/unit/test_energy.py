"""Joules a token from meters made of files and a program that speaks as Apple's: sums, and reasons for none."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from validation import energy
from validation.outcome import Energy

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def bare_linux(tmp_path: Path, monkeypatch: Patch) -> None:
    """A machine without any meter."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    monkeypatch.setattr(energy, "SUPPLIES", tmp_path / "power_supply")


def folder(path: Path, **files: object) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name).write_text(f"{text}\n", encoding="utf-8")
    return path


def zone(number: str, name: str, microjoules: int, most: int = 262_143_328_850) -> Path:
    files = {"name": name, "energy_uj": microjoules, "max_energy_range_uj": most}
    return folder(energy.POWERCAP / f"intel-rapl:{number}", **files)


def battery(**files: object) -> Path:
    return folder(energy.SUPPLIES / "BAT0", **({"type": "Battery", "status": "Discharging"} | files))


def test_packages_and_memory_are_added_and_nothing_is_counted_twice() -> None:
    package, memory = zone("0", "package-0", 1_000_000), zone("0:2", "dram", 500_000)
    core, whole = zone("0:0", "core", 1_000), zone("1", "psys", 1_000)
    found = energy.meter("ort:cpu")
    found.start()
    for path, microjoules in ((package, 4_000_000), (memory, 700_000), (core, 900_000), (whole, 9_000_000)):
        folder(path, energy_uj=microjoules)
    assert found.stop(100, 1.0) == Energy(pytest.approx(0.032), "RAPL: package-0, dram")


def test_a_counter_that_starts_again_is_followed() -> None:
    package = zone("0", "package-0", 900_000, most=1_000_000)
    found = energy.meter("ort:cpu")
    found.start()
    folder(package, energy_uj=100_000)
    assert found.stop(2, 1.0).joules == pytest.approx(0.1)


def test_a_counter_that_stands_still_is_no_energy_of_zero() -> None:
    zone("0", "package-0", 900_000)
    found = energy.meter("ort:cpu")
    found.start()
    assert found.stop(2, 1.0) == Energy(reason="RAPL counted nothing")


def test_counters_for_root_only_are_told(monkeypatch: Patch) -> None:
    package = zone("0", "package-0", 1)
    monkeypatch.setattr(energy.os, "access", lambda path, mode: False)
    reason = energy.meter("ort:cpu").stop(1, 1.0).reason
    assert reason.startswith(f"{package / 'energy_uj'} is for root only: sudo chmod")


@pytest.mark.parametrize(
    ("files", "watts"),
    [({"power_now": 6_000_000}, 6.0), ({"current_now": -1_500_000, "voltage_now": 4_000_000}, 6.0)],
)
def test_a_battery_gives_power_times_time(files: dict[str, int], watts: float) -> None:
    battery(**files)
    found = energy.meter("ort:cpu")
    found.start()
    assert found.stop(1000, 20.0) == Energy(pytest.approx(watts * 20 / 1000), "battery BAT0: the whole device")


def test_a_battery_says_why_it_cannot_tell() -> None:
    supply = battery(power_now=6_000_000)
    found = energy.meter("ort:cpu")
    found.start()
    assert found.stop(10, 0.5) == Energy(reason="BAT0 needs a run of 10 s, this took 0.5 s: more --tokens")
    folder(supply, status="Charging")
    assert found.stop(10, 20.0) == Energy(reason="BAT0 was plugged in during the run")
    assert "neither RAPL counters nor a battery in use" in energy.meter("ort:cpu").stop(1, 1.0).reason


SAYS = "Combined Power (CPU + GPU + ANE): {} mW"


def test_powermetrics_is_read_while_it_runs(tmp_path: Path, monkeypatch: Patch) -> None:
    program = tmp_path / "powermetrics"
    said = "; ".join(f"echo '{SAYS.format(watts)}'" for watts in (4000, 6000))
    program.write_text(f"#!/bin/sh\n{said}; touch {tmp_path}/said; exec sleep 60\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(energy.os, "geteuid", lambda: 0)
    found = energy.meter("coreml:ane")
    found.start()
    while not (tmp_path / "said").exists():
        pass
    assert found.stop(10, 2.0) == Energy(pytest.approx(1.0), "powermetrics: CPU, GPU and Neural Engine")
    monkeypatch.setattr(energy.os, "geteuid", lambda: 501)
    assert energy.meter("coreml:ane").stop(1, 1.0).reason == "powermetrics is for root only: run it with sudo"


def test_other_machines_and_systems_are_not_guessed(monkeypatch: Patch) -> None:
    assert energy.meter("ssh://pi@board/ort:cpu").stop(1, 1.0) == Energy(reason="not measured on other machines")
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert energy.meter("ort:cpu").stop(1, 1.0).reason == "no meter known on Windows"
