"""Places on other machines: an ssh server of this machine stands for one; what it lacks is copied, and no more."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import runtimes
from runtimes import registry, remote
from runtimes.errors import Missing, WrongCall
from runtimes.manifest import File
from runtimes.remote import conditions, receive, transports
from runtimes.remote.conditions import Conditions
from runtimes.remote.transports import ssh
from tests.requirements import require
from tests.unit.small_exports import TOKENS, exported
from validation import measure, validate
from validation.outcome import Outcome

pytestmark = pytest.mark.slow

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
SetEnv XDG_CACHE_HOME={folder}/far
"""
PIXEL = """
zone cpu-0-0-usr 41200
zone cpu-0-0-usr 43900
zone battery 29
zone broken
core 0 schedutil 300000 1803000 1803000
core 7 schedutil 2850000 2000000 2850000
core x schedutil 1 2 3
Permission denied
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("7", "onnx-cpu", tmp_path_factory.mktemp("remote"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A server for one key; yields its folder, the far cache in it."""
    require("sshd", None if SSHD and shutil.which("ssh") else "there is no sshd or no ssh (openssh-server)")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "config").write_text(CONFIG.format(port=port, folder=folder))
    (folder / "port").write_text(str(port))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where its processes without rights stand
    running = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
    for _ in range(100):
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield folder
    running.terminate()
    running.wait()


@pytest.fixture
def place(server: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    options = "-o StrictHostKeyChecking=no -o IdentitiesOnly=yes -o LogLevel=ERROR"
    monkeypatch.setenv(ssh.PROGRAM, f"ssh -F none -i {server}/user -o UserKnownHostsFile={server}/known {options}")
    monkeypatch.setenv(ssh.PYTHON, sys.executable)
    return f"ssh://127.0.0.1:{(server / 'port').read_text()}/ort:cpu"


def test_an_artifact_passes_there_and_is_timed_there(folder: Path, place: str) -> None:
    (row,) = validate([folder], on=[place], checkpoint=folder.parent / "7.pth", steps=8).parity
    assert row.outcome is Outcome.PASS, row.reasons
    assert row.identity.requested == row.identity.observed == place
    (timed,) = measure([folder], on=[place], prompt=2, tokens=4).latency
    assert timed.outcome is Outcome.PASS
    assert timed.decode is not None
    assert len(timed.decode.seconds) == 4


def test_a_session_there_gives_what_one_here_gives(folder: Path, place: str) -> None:
    far, here = runtimes.open_session(folder, place), runtimes.open_session(folder, "ort:cpu")
    made, wanted = far.prefill(TOKENS, far.initial_state()), here.prefill(TOKENS, here.initial_state())
    np.testing.assert_array_equal(made.logits, wanted.logits)
    far.close()


def test_only_what_changed_is_copied_and_a_broken_copy_goes_on(server: Path, place: str, tmp_path: Path) -> None:
    machine = ssh.at(remote.address(place))
    content = {"a/large": os.urandom(3 << 20), "small": b"1"}
    held = server / "far" / "rwkv-export" / "received" / "files"
    held.mkdir(parents=True, exist_ok=True)
    files = []
    for name, data in content.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        files.append((path, File(name, len(data), hashlib.sha256(data).hexdigest())))
    broken = (held / files[0][1].sha256).with_suffix(".part")
    broken.write_bytes(content["a/large"][: 2 << 20])

    sent: list[int] = []
    real = transports.send

    def counted(path: Path, stream: io.BufferedIOBase, start: int) -> None:
        sent.append(path.stat().st_size - start)
        real(path, stream, start)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssh, "send", counted)
        one = machine.push("one", files)
        assert sent == [1 << 20, 1]
        sent.clear()
        other = machine.push("other", files)
        assert sent == [0, 0]
    for place_there in (one, other):
        assert {name: (Path(place_there) / name).read_bytes() for name in content} == content


def test_what_was_altered_on_the_way_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(ValueError, match="not what was sent"):
        receive.take(io.BytesIO(b"altered!"), path, 8, hashlib.sha256(b"original").hexdigest())
    with pytest.raises(EOFError):
        receive.take(io.BytesIO(b"half"), path, 8, hashlib.sha256(b"original").hexdigest())
    assert path.with_suffix(".part").read_bytes() == b"half"
    receive.take(io.BytesIO(b"altered!"), tmp_path / "good", 8, hashlib.sha256(b"altered!").hexdigest())
    assert (tmp_path / "good").read_bytes() == b"altered!"


def test_a_machine_without_python_or_the_runtime_says_what_to_install(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Missing, match=r"127\.0\.0\.1: rknn:npu cannot run here: .*rknn-toolkit-lite2") as raised:
        runtimes.open_session(folder, place.replace("ort:cpu", "rknn:npu"))
    assert "-m pip install numpy rknn-toolkit-lite2" in str(raised.value.hint)
    monkeypatch.setenv(ssh.PYTHON, "no-such-python")
    with pytest.raises(Missing, match=r"127\.0\.0\.1 has no no-such-python"):
        runtimes.open_session(folder, place)


def test_a_machine_that_is_not_reached_is_missing(folder: Path, place: str) -> None:
    closed = place.replace((Path(place).parts[1]).rpartition(":")[2], "1")
    (row,) = validate([folder], on=[closed], checkpoint=folder.parent / "7.pth", steps=4).parity
    assert row.outcome is Outcome.MISSING
    assert "127.0.0.1 is not reached by ssh" in row.reasons[0]


def test_an_old_python_is_told_before_anything_is_started() -> None:
    with pytest.raises(Missing, match=r"board has Python 3\.9\.2, the agent needs 3\.11"):
        ssh.at("board")._require_new("3.9.2")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("ssh://board", "names no runtime there"),
        ("ssh:///ort:cpu", "is no machine"),
        ("ssh://-oProxyCommand=x/ort:cpu", "is no machine"),
        ("ssh://board:x/ort:cpu", "is no machine"),
        ("ssh://board/otr:cpu", "unknown runtime 'otr'"),
        ("ssh://board/ort:cqu", "has no device 'cqu'"),
        ("shh://board/ort:cpu", "unknown way 'shh'"),
    ],
)
def test_places_that_cannot_be_meant_are_refused(place: str, message: str) -> None:
    with pytest.raises(WrongCall, match=message):
        registry.parse(place)


def test_places_on_other_machines_are_read() -> None:
    assert registry.parse("ssh://me@board:22/ort") == ("ssh://me@board:22/ort", "cpu")
    assert ssh.at("me@board:22") == ssh.Ssh("me@board", 22)
    assert ssh.at("[::1]:22") == ssh.Ssh("::1", 22)
    assert ssh.at("board").command(["a b", "c"])[-3:] == ["--", "board", "'a b' c"]


def test_what_a_phone_tells_of_itself_is_read() -> None:
    found = conditions.parse(PIXEL)
    assert found.celsius == {"cpu-0-0-usr": 41.2, "cpu-0-0-usr.1": 43.9, "battery": 29.0}
    assert found.governors == {0: "schedutil", 7: "schedutil"}
    assert found.mhz == {0: 300.0, 7: 2850.0}
    assert found.allowed == {0: 1.0, 7: pytest.approx(0.7018, abs=1e-4)}


def test_heat_and_held_back_cores_are_worth_a_word() -> None:
    cool, hot = Conditions(celsius={"cpu": 40.0}), conditions.parse("zone cpu 61500\n" + PIXEL)
    said = conditions.remarks(cool, hot)
    assert said[0] == "warmest zone cpu: 40.0 °C before, 61.5 °C after: it heats up, let it rest with --cool-down"
    assert "CPU governor schedutil" in said[1]
    assert "70% of its highest frequency" in said[2]
    assert conditions.remarks(Conditions(), Conditions()) == []


def test_the_command_reads_what_linux_keeps_in_files(tmp_path: Path) -> None:
    files = {"class/thermal/thermal_zone0/type": "soc-thermal", "class/thermal/thermal_zone0/temp": "47222"}
    files |= {"class/thermal/thermal_zone1/type": "without a temperature"}
    for name, value in {"scaling_governor": "ondemand", "scaling_cur_freq": "408000"}.items():
        files[f"devices/system/cpu/cpu4/cpufreq/{name}"] = value
    files |= {f"devices/system/cpu/cpu4/cpufreq/{name}_max_freq": "2400000" for name in ("scaling", "cpuinfo")}
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    command = conditions.COMMAND.replace("/sys/", f"{tmp_path}/")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert conditions.parse(done.stdout) == Conditions({"soc-thermal": 47.222}, {4: "ondemand"}, {4: 408.0}, {4: 1.0})
