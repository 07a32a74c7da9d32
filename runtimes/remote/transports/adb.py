"""An Android device that adb reaches: what it lacks is copied there, and a program answers; nothing is installed.

Its shell's streams are all that is used, binary and apart since Android 7, and sha256sum, which Android 8 has. An adb
whose device went away ends with status 0: only what the device says last counts.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from posixpath import relpath
from typing import BinaryIO, NamedTuple, cast

from runtimes import threads
from runtimes.agent import programs
from runtimes.agent.native import NativeSession
from runtimes.contract import Artifact, Session
from runtimes.errors import CheckFailed, Missing, WrongCall
from runtimes.manifest import File, list_files
from runtimes.remote.conditions import COMMAND, Conditions, parse
from runtimes.remote.transports import Files, last_line, listed, program, send

PROGRAM = "RWKV_EXPORT_ADB"
"""Variable: the program and its options, "adb -P 5038"."""
FOLDER = "/data/local/tmp/rwkv-export"
"""There: the one place where adb's user may write files and execute them."""
FACTS = "uname -m; command -v sha256sum; getprop ro.boot.qemu; getprop ro.kernel.qemu; true"
TAKE = (
    "cat >> {part} && [ $(wc -c < {part}) -ge {bytes} ] || exit 1; found=$(sha256sum < {part});"
    ' if [ "${{found%% *}}" != {sha256} ]; then rm {part}; echo altered; exit 1; fi;'
    " chmod 755 {part} && mv {part} {path} && echo taken"
)
TROUBLE = {
    "unauthorized": "unlock it and allow USB debugging from this computer",
    "offline": "plug it in again, or try `adb reconnect`",
    "no permissions": "see https://developer.android.com/studio/run/device for udev's rules",
}
"""What to do about a state that `adb devices` tells."""


class There(NamedTuple):
    """What a folder on the device has. hashes: SHA-256 by name; begun: bytes by name; free: bytes left, if told."""

    hashes: Mapping[str, str]
    begun: Mapping[str, int]
    free: int | None


@dataclass(frozen=True)
class Adb:
    """One device. serial: as `adb devices` lists it; "" for ANDROID_SERIAL, or the only one."""

    serial: str

    def open_session(self, artifact: Artifact, place: str, where: str) -> Session:
        """As Machine."""
        device = Adb(self.connected())
        machine, emulated = device.facts()
        chosen = programs.of(place.partition(":")[0])
        folder = chosen.folder(machine)
        files = [(folder / file.path, file) for file in list_files(folder)]
        there = device.push("programs", folder.name, files)
        pushed = device.push("artifacts", *listed(artifact))
        loader = next(file.path for _, file in files if file.path.startswith("ld-linux"))
        words = [f"./{loader}", "--library-path", ".", f"./{chosen.name}", "--serve"]
        words += ["--threads", str(threads.requested()), *(["--emulated"] if emulated else [])]
        command = device.command(f"cd {there} && exec {shlex.join(words)}")
        return NativeSession(command, artifact, folder=relpath(pushed, there), place=place, where=where)

    def conditions(self) -> Conditions:
        """As Machine."""
        return parse(Adb(self.connected()).shell(COMMAND))

    def command(self, script: str) -> list[str]:
        """What runs a script of the device's shell, its streams binary."""
        return [*_adb(), "-s", self.serial, "shell", "-T", script]

    def shell(self, script: str) -> str:
        """What a script prints; raises Missing where the device cannot be asked."""
        done = subprocess.run(self.command(f"{script}\necho answered"), capture_output=True, check=False)
        said = done.stdout.decode(errors="replace")
        if not said.endswith("answered\n"):
            raise Missing(f"{self.serial} does not answer: {last_line(done.stderr) or 'the connection broke'}")
        return said.removesuffix("answered\n")

    def connected(self) -> str:
        """The device's serial; raises Missing where it cannot be used now, WrongCall where it could be several."""
        done = subprocess.run([*_adb(), "devices"], capture_output=True, check=False)
        if done.returncode:
            raise Missing(f"adb does not run: {last_line(done.stderr)}")
        lines = done.stdout.decode(errors="replace").splitlines()
        states = dict(line.split("\t", 1) for line in lines if "\t" in line)
        serial = self.serial or os.environ.get("ANDROID_SERIAL", "")
        if not serial and len(states) > 1:
            raise WrongCall(f"several devices are connected: {', '.join(states)}", hint="name one, adb://SERIAL/...")
        serial = serial or next(iter(states), "")
        if serial not in states:
            others = f"connected: {', '.join(states)}" if states else "plug one in with USB debugging on"
            what = f"{serial} is not connected" if serial else "no Android device is connected"
            raise Missing(what, hint=f"{others}, or `adb connect HOST:PORT`")
        if states[serial] != "device":
            advice = (hint for state, hint in TROUBLE.items() if states[serial].startswith(state))
            raise Missing(f"{serial} cannot be used: {states[serial]}", hint=next(advice, "see `adb devices`"))
        return serial

    def facts(self) -> tuple[str, bool]:
        """What `uname -m` says, and whether an emulator plays the device; raises Missing for an Android too old."""
        machine, *told = self.shell(FACTS).splitlines()
        if not any(line.endswith("sha256sum") for line in told):
            raise Missing(f"{self.serial} has no sha256sum", hint="Android 8 and newer have it")
        return machine, "1" in told

    def push(self, kind: str, name: str, files: Files) -> str:
        """Copy what is not there by its hash, and go on where a copy broke off; returns the folder there."""
        folder = f"{FOLDER}/{kind}/{name}"
        there = self._look(folder, [file for _, file in files])
        lacking = [(path, file) for path, file in files if there.hashes.get(file.path) != file.sha256]
        starts = {file.path: there.begun.get(file.path, 0) for _, file in lacking}
        needed = sum(max(0, file.bytes - starts[file.path]) for _, file in lacking)
        if there.free is not None and needed > there.free:
            need, free = needed / 1e6, there.free / 1e6
            raise Missing(
                f"{self.serial} has {free:.0f} MB free for {need:.0f} MB in {FOLDER}",
                hint=f"adb shell rm -r {FOLDER} removes what was copied there",
            )
        for path, file in lacking:
            self._send(path, file, folder, starts[file.path])
        return folder

    def _look(self, folder: str, files: list[File]) -> There:
        """What of the files is in the folder, which is made."""
        parents = {f"{folder}/{file.path}".rpartition("/")[0] for file in files}
        names = shlex.join(file.path for file in files)
        parts = shlex.join(f"{file.path}.part" for file in files)
        script = f"mkdir -p {shlex.join(parents)} && cd {folder} && (sha256sum {names}; wc -c {parts}; df -kP .)"
        told = [line.split() for line in self.shell(f"{script} 2>/dev/null").splitlines()]
        pairs = [words for words in told if len(words) == 2]
        hashes = {name.lstrip("*"): first for first, name in pairs if len(first) == 64}
        begun = {name.removesuffix(".part"): int(size) for size, name in pairs if size.isdecimal() and name != "total"}
        rooms = [words[3] for words in told if len(words) >= 6 and words[3].isdecimal()]
        return There(hashes, begun, int(rooms[-1]) * 1024 if rooms else None)

    def _send(self, path: Path, file: File, folder: str, start: int) -> None:
        """The rest of a file. It gets its name there when its hash is right, and starts anew where that was wrong."""
        there, part = (shlex.quote(f"{folder}/{file.path}{ending}") for ending in ("", ".part"))
        script = TAKE.format(part=part, path=there, bytes=file.bytes, sha256=file.sha256)
        with subprocess.Popen(
            self.command(script), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            with contextlib.suppress(OSError):  # it stopped reading; what it says tells why
                send(path, cast(BinaryIO, process.stdin), start)
            out, said = process.communicate()
        if b"altered" in out:
            raise CheckFailed(f"what came of {file.path} at {self.serial} is not what was sent", hint="try once more")
        if b"taken" not in out:
            why = last_line(said) or "the connection broke"
            raise Missing(
                f"{file.path} was not copied to {self.serial} whole: {why}", hint="the next try goes on from there"
            )


def devices(runtime: str) -> tuple[str, ...]:
    """Those of the runtime's program for machines without Python; raises WrongCall where it has none."""
    return programs.of(runtime).devices


def at(address: str) -> Adb:
    """The device of this serial, or of any where it is empty; raises WrongCall."""
    if address.startswith("-") or not address.isprintable() or " " in address:
        raise WrongCall(f"{address!r} is no serial", hint="for example adb://SERIAL/pte:cpu-direct; see `adb devices`")
    return Adb(address)


def _adb() -> list[str]:
    return program(PROGRAM, "adb", package="adb")
