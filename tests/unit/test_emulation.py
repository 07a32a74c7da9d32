"""A processor that QEMU plays is found out by what the kernel and the processor tell, and real ones are let be."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_rnn import session

from runtimes import emulation

CORTEX = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"
"""As QEMU 10 shows a Cortex-A76 to programs in its user mode, and as one shows itself."""
EPYC = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: fpu hypervisor\n"


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    emulation.played.cache_clear()
    yield
    emulation.played.cache_clear()


@pytest.mark.parametrize(
    ("machine", "kernel", "cpuinfo", "played"),
    [
        ("aarch64", "x86_64\n", CORTEX, True),  # qemu-aarch64, as in containers of another platform
        ("x86_64", "aarch64\n", EPYC, True),
        ("riscv64", "x86_64\n", "", True),
        ("aarch64", "aarch64\n", CORTEX, False),
        ("armv8l", "aarch64\n", CORTEX, False),  # a 32-bit system on a 64-bit kernel
        ("armv7l", "armv7l\n", CORTEX, False),
        ("i686", "x86_64\n", EPYC, False),
        ("x86_64", "x86_64\n", EPYC, False),
        ("x86_64", "", EPYC, False),  # Linux before 6.1
        ("arm64", "", "", False),  # a Mac
        ("AMD64", "", "", False),  # Windows
        ("aarch64", "aarch64\n", "CPU implementer\t: 0x00\nCPU part\t: 0x051\n", True),  # qemu-system-aarch64 -cpu max
        ("x86_64", "x86_64\n", "model name\t: QEMU TCG CPU version 2.5+\n", True),
        ("x86_64", "x86_64\n", "model name\t: QEMU Virtual CPU version 2.5+\n", False),  # may run on KVM
    ],
)
def test_what_plays_the_processor_is_found_out(
    machine: str, kernel: str, cpuinfo: str, played: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("KERNEL", kernel), ("CPUINFO", cpuinfo)):
        if text:
            (tmp_path / name).write_text(text, encoding="utf-8")
        monkeypatch.setattr(emulation, name, tmp_path / name)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert emulation.played() is played


def test_nothing_ran_on_a_device_where_the_processor_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert session().placement().evidence == "run"
    monkeypatch.setattr(emulation, "played", lambda: True)
    assert session().placement().evidence == "emulated"
