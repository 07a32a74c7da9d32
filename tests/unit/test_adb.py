"""Places on Android devices: the real adb, and a device on loopback that runs this machine's program or Arm's."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import runtimes
from runtimes import registry
from runtimes.agent.session import AgentDied
from runtimes.backends import pte
from runtimes.errors import CheckFailed, Missing, WrongCall
from runtimes.manifest import File
from runtimes.remote import conditions, transports
from runtimes.remote.transports import adb
from tests.conftest import Exports
from tests.requirements import require
from tests.unit.fake_adbd import Device
from validation import measure, validate
from validation.outcome import Outcome

pytestmark = pytest.mark.slow

XNNPACK = "executorch-xnnpack"
QEMU = "qemu-aarch64-static"
TOKENS = [3, 31, 0, 7, 100, 19]
HOT = """
Thermal Status: 2
Current temperatures from HAL:
	Temperature{mValue=43.25, mType=3, mName=SKIN, mStatus=2}
	CoolingDevice{mValue=1, mType=2, mName=cpu}
  temperature: 312
"""
FULL = """
Filesystem 1024-blocks Used Available Capacity Mounted on
/dev/block/dm-9 9 9 1000 99% /data
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """Connected to an adb server of its own."""
    require("adb", None if shutil.which("adb") else "there is no adb (apt install adb)")
    made = Device(tmp_path_factory.mktemp("adb") / "device")
    with socket.socket() as free, pytest.MonkeyPatch.context() as patch:
        free.bind(("127.0.0.1", 0))
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(free.getsockname()[1]))
        patch.setenv("HOME", str(made.folder))  # where adb keeps its key
        patch.setenv("RWKV_EXPORT_THREADS", "1")
        patch.delenv("ANDROID_SERIAL", raising=False)
        free.close()
        subprocess.run(["adb", "connect", made.serial], check=True, capture_output=True)
        yield made
        subprocess.run(["adb", "kill-server"], check=True, capture_output=True)
    made.close()


@pytest.fixture
def place(device: Device) -> Iterator[str]:
    """The device, as it was at first."""
    while "\tdevice" not in subprocess.run(["adb", "devices"], capture_output=True, text=True, check=True).stdout:
        time.sleep(0.05)  # adb finds out by itself that the cable is back
    yield f"adb://{device.serial}/pte:cpu-direct"
    device.programs.clear()
    device.cut_after = None


@pytest.fixture(scope="module")
def artifact(exports: Exports) -> Path:
    try:
        pte.PROGRAM.folder(platform.machine())
    except Missing as error:
        require("cxx", error.message)
    return exports("7", XNNPACK)


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adb that prints what the files `devices` and `shell` beside it say."""
    program = tmp_path / "adb"
    program.write_text('#!/bin/sh\n[ "$1" = devices ] || set shell\ncat "${0%adb}$1"\n')
    program.chmod(0o755)
    (tmp_path / "devices").write_text("List of devices attached\nPHONE\tdevice\n")
    monkeypatch.setenv(adb.PROGRAM, str(program))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    return tmp_path


def a_file(path: Path, content: bytes) -> tuple[Path, File]:
    path.write_bytes(content)
    return path, File(path.name, len(content), hashlib.sha256(content).hexdigest())


def test_an_artifact_passes_there_and_is_timed_there(
    exports: Exports, artifact: Path, device: Device, place: str
) -> None:
    device.programs["dumpsys"] = f"echo '{HOT}'"
    (row,) = validate([artifact], on=[place], checkpoint=exports.checkpoint("7"), steps=8).parity
    assert row.outcome is Outcome.PASS, row.reasons
    assert row.identity.requested == row.identity.observed == place
    assert (row.identity.nodes, row.identity.evidence) == ({"XnnpackBackend": 1}, "run")
    (timed,) = measure([artifact], on=["adb:///pte"], prompt=2, tokens=4).latency
    assert (timed.outcome, timed.identity.observed) == (Outcome.PASS, "adb:///pte:cpu-direct")
    assert timed.decode is not None
    assert len(timed.decode.seconds) == 4
    assert "warmest zone SKIN: 43.2 °C before, 43.2 °C after" in timed.warnings
    assert "Android holds it back because of heat, moderate: let it rest with --cool-down" in timed.warnings


def test_a_session_there_gives_what_one_here_gives(artifact: Path, place: str) -> None:
    far, here = runtimes.open_session(artifact, place), runtimes.open_session(artifact, "pte:cpu")
    made, wanted = far.prefill(TOKENS, far.initial_state()), here.prefill(TOKENS, here.initial_state())
    np.testing.assert_array_equal(made.logits, wanted.logits)
    far.close()


def test_an_emulated_arm_device_computes_and_its_times_are_called_an_emulators(
    exports: Exports, device: Device, place: str
) -> None:
    require("arm64", None if shutil.which(QEMU) else f"{QEMU} is not installed")
    try:
        pte.PROGRAM.folder("aarch64")
    except Missing as error:
        require("arm64", error.message)
    artifact = exports("7", XNNPACK)
    device.programs |= {"uname": "echo aarch64", "getprop": '[ "$1" = ro.kernel.qemu ] && echo 1'}
    device.replaced["exec ./ld-linux-aarch64"] = f"exec {QEMU} -cpu cortex-a76 ./ld-linux-aarch64"
    (row,) = validate([artifact], on=[place], checkpoint=exports.checkpoint("7"), steps=4).parity
    assert (row.outcome, row.identity.evidence) == (Outcome.PASS, "emulated"), row.reasons
    (timed,) = measure([artifact], on=[place], prompt=2, tokens=2).latency
    assert "these times are those of an emulator" in timed.warnings[0]


def test_only_what_lacks_is_copied_and_a_broken_copy_goes_on(
    device: Device, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [a_file(tmp_path / "large", os.urandom(3 << 20) + b"\n~."), a_file(tmp_path / "small", b"\x03\x04\r\n")]
    sent: list[int] = []
    real = transports.send

    def counted(path: Path, stream: object, start: int) -> None:
        sent.append(path.stat().st_size - start)
        real(path, stream, start)  # type: ignore[arg-type]

    monkeypatch.setattr(adb, "send", counted)
    phone, there = adb.at(device.serial), device.folder / "tmp" / "rwkv-export" / "artifacts" / "one"
    device.cut_after = 1 << 20
    with pytest.raises(Missing, match=r"large was not copied to 127.* whole: the connection broke"):
        phone.push("artifacts", "one", files)
    device.cut_after = None
    assert {path.name: path.stat().st_size for path in there.iterdir()} == {"large.part": 1 << 20}
    while "\tdevice" not in subprocess.run(["adb", "devices"], capture_output=True, text=True, check=True).stdout:
        time.sleep(0.05)

    sent.clear()
    phone.push("artifacts", "one", files)
    assert sent == [(2 << 20) + 3, 4]
    sent.clear()
    (there / "small").write_bytes(b"what somebody else put there")
    phone.push("artifacts", "one", files)
    assert sent == [4]
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {
        path.name: path.read_bytes() for path, _ in files
    }


def test_what_was_altered_on_the_way_is_not_taken(device: Device, place: str, tmp_path: Path) -> None:
    phone, files = adb.at(device.serial), [a_file(tmp_path / "file", b"original")]
    there = device.folder / "tmp" / "rwkv-export" / "artifacts" / "two"
    there.mkdir(parents=True)
    (there / "file.part").write_bytes(b"alter")
    with pytest.raises(CheckFailed, match=r"what came of file at 127.* is not what was sent"):
        phone.push("artifacts", "two", files)
    assert list(there.iterdir()) == []
    phone.push("artifacts", "two", files)
    assert (there / "file").read_bytes() == b"original"


def test_a_device_that_is_full_is_told_before_anything_is_copied(device: Device, place: str, tmp_path: Path) -> None:
    device.programs["df"] = f"echo '{FULL}'"
    files = [a_file(tmp_path / "file", bytes(2_100_000))]
    with pytest.raises(Missing, match=r"has 1 MB free for 2 MB in /data/local/tmp/rwkv-export") as raised:
        adb.at(device.serial).push("artifacts", "three", files)
    assert raised.value.hint == "adb shell rm -r /data/local/tmp/rwkv-export removes what was copied there"


def test_a_cable_that_is_pulled_ends_the_session_with_one_message(artifact: Path, device: Device, place: str) -> None:
    session = runtimes.open_session(artifact, place)
    state = session.initial_state()
    device.cut_after = 0
    with pytest.raises(AgentDied, match=r"session on adb://127.* is gone at 'step': its connection closed"):
        session.step(3, state)


@pytest.mark.parametrize(
    ("listed", "address", "error", "message", "hint"),
    [
        ("", "", Missing, "no Android device is connected", "plug one in with USB debugging on, or `adb connect"),
        ("A\tdevice\nB\tdevice", "", WrongCall, "several devices are connected: A, B", "name one"),
        ("A\tdevice\nB\tdevice", "C", Missing, "C is not connected", "connected: A, B"),
        ("A\tunauthorized", "", Missing, "A cannot be used: unauthorized", "unlock it and allow"),
        ("A\toffline\nB\tdevice", "A", Missing, "A cannot be used: offline", "adb reconnect"),
        ("A\tno permissions (missing udev rules?); see [u]", "A", Missing, "A cannot be used: no permissions", "udev"),
        ("A\trecovery", "A", Missing, "A cannot be used: recovery", "see `adb devices`"),
    ],
)
def test_a_device_that_cannot_be_used_says_why(
    stub: Path, listed: str, address: str, error: type[Missing | WrongCall], message: str, hint: str
) -> None:
    (stub / "devices").write_text(f"List of devices attached\n{listed}\n\n")
    with pytest.raises(error, match=message) as raised:
        conditions.at(f"adb://{address}/pte")
    assert hint in str(raised.value.hint)


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        ("armv8l\n/system/bin/sha256sum\nanswered\n", "no program for 'armv8l', which is no 64-bit machine", None),
        ("aarch64\nanswered\n", "PHONE has no sha256sum", "Android 8 and newer have it"),
        ("", "PHONE does not answer: the connection broke", None),
    ],
)
def test_a_device_that_is_too_old_says_so(
    exports: Exports, stub: Path, said: str, message: str, hint: str | None
) -> None:
    (stub / "shell").write_text(said)
    with pytest.raises(Missing, match=message) as raised:
        runtimes.open_session(exports("7", XNNPACK), "adb:///pte")
    assert raised.value.hint == hint


def test_without_adb_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(adb.PROGRAM, "no-such-adb -P 5038")
    with pytest.raises(Missing, match="there is no program no-such-adb") as raised:
        conditions.at("adb:///pte")
    assert raised.value.hint == "apt install adb, or name another in RWKV_EXPORT_ADB"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("adb://PHONE", "names no runtime there"),
        ("adb://-s/pte", "'-s' is no serial"),
        ("adb://a b/pte", "'a b' is no serial"),
        ("adb://PHONE/pte:cpu", "has no device 'cpu'"),
        ("adb://PHONE/coreml", "coreml has no program for machines without Python"),
        ("abd://PHONE/pte", "unknown way 'abd'"),
    ],
)
def test_places_that_cannot_be_meant_are_refused(place: str, message: str) -> None:
    with pytest.raises(WrongCall, match=message):
        registry.parse(place)


def test_another_spelling_says_how_devices_are_written() -> None:
    with pytest.raises(WrongCall) as raised:
        registry.parse("adb:PHONE/pte")
    assert raised.value.hint == "other machines are written adb://ADDRESS/RUNTIME:DEVICE"


def test_places_on_devices_are_read() -> None:
    assert registry.parse("adb://192.168.1.5:5555/pte") == ("adb://192.168.1.5:5555/pte", "cpu-direct")
    assert registry.parse("adb:///pte:cpu-direct") == ("adb:///pte", "cpu-direct")


def test_what_android_tells_of_its_heat_is_read() -> None:
    found = conditions.parse(HOT)
    assert (found.celsius, found.throttling) == ({"SKIN": 43.25, "battery": 31.2}, 2)
