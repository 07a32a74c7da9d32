"""A machine that ssh reaches: what it lacks is copied there, and an agent is started; the user's own ssh is used."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from runtimes import registry
from runtimes.agent import bundle
from runtimes.agent.session import MODULE, AgentSession
from runtimes.contract import Artifact, Session
from runtimes.errors import Missing, WrongCall
from runtimes.manifest import File, sha256
from runtimes.remote import receive
from runtimes.remote.conditions import COMMAND, Conditions, parse
from runtimes.remote.transports import Files, last_line, listed, program, send

PROGRAM, PYTHON = "RWKV_EXPORT_SSH", "RWKV_EXPORT_SSH_PYTHON"
"""Variables: the program and its options, "ssh -i key"; the Python there, "python3" unless told otherwise."""
OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15")
OLDEST = (3, 11)
NOT_REACHED, NOT_FOUND = 255, 127  # exit statuses of ssh itself, and of a shell that has no such program
PACKAGES = {"ort": "onnxruntime", "rknn": "rknn-toolkit-lite2"}


@dataclass(frozen=True)
class Ssh:
    """One machine. address: "user@host" or "host", as ssh takes it; port: None for ssh's own choice."""

    address: str
    port: int | None = None

    def command(self, words: Sequence[str]) -> list[str]:
        """What runs `words` there."""
        port = ["-p", str(self.port)] if self.port else []
        start = [*program(PROGRAM, "ssh", package="openssh-client"), *OPTIONS, *port]
        return [*start, "--", self.address, shlex.join(words)]

    def open_session(self, artifact: Artifact, place: str, where: str) -> Session:
        """As Machine; an agent goes there too. The machine may lack Python, NumPy or the runtime."""
        library = bundle.archive()
        agent = self.push("agent", [(library, File(library.name, library.stat().st_size, sha256(library)))])
        folder = self.push(*listed(artifact))
        variables = [f"PYTHONPATH={agent}/{library.name}", f"RWKV_EXPORT_THREADS={_threads()}"]
        words = ["env", *variables, _python(), "-P", "-m", MODULE]
        try:
            return AgentSession(self.command(words), folder=folder, place=place, where=where)
        except Missing as error:
            runtime = place.partition(":")[0]
            wanted = f"numpy {PACKAGES[runtime]}" if runtime in PACKAGES else "numpy and what the message names"
            hint = f"on {self.address}: {_python()} -m pip install {wanted}"
            raise Missing(f"{self.address}: {error.message}", hint=hint) from error

    def push(self, name: str, files: Files) -> str:
        """Copy what is not there by its hash, and go on where a copy broke off; returns the folder there."""
        words = [_python(), "-c", Path(receive.__file__).read_text(encoding="utf-8")]
        told = {"folder": name, "files": [[file.path, file.bytes, file.sha256] for _, file in files]}
        with subprocess.Popen(
            self.command(words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            into, out = cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout)
            try:
                into.write(json.dumps(told).encode() + b"\n")
                into.flush()
                reply = json.loads(out.readline())
                self._require_new(reply["python"])
                for path, file in files:
                    send(path, into, reply["have"][file.path])
                into.flush()
                return str(json.loads(out.readline())["folder"])
            except (OSError, ValueError) as error:
                with contextlib.suppress(OSError):
                    into.close()
                said = last_line(cast(BinaryIO, process.stderr).read())
                raise self._unreached(process.wait(), said) from error

    def conditions(self) -> Conditions:
        """As Machine."""
        done = subprocess.run(self.command(["sh", "-c", COMMAND]), capture_output=True, check=False)
        if done.returncode == NOT_REACHED:
            raise self._unreached(done.returncode, last_line(done.stderr))
        return parse(done.stdout.decode(errors="replace"))

    def _require_new(self, version: str) -> None:
        if tuple(map(int, version.split(".")[:2])) < OLDEST:
            needed = ".".join(map(str, OLDEST))
            raise Missing(f"{self.address} has Python {version}, the agent needs {needed}", hint=f"set {PYTHON}")

    def _unreached(self, status: int, said: str) -> Missing:
        if status == NOT_FOUND:
            return Missing(f"{self.address} has no {_python()}", hint=f"install Python there, or set {PYTHON}")
        hint = f"try `ssh {self.address}` by hand; {PROGRAM} names another program or options"
        return Missing(f"{self.address} is not reached by ssh: {said or f'status {status}'}", hint=hint)


def devices(runtime: str) -> tuple[str, ...]:
    """Whatever the runtime has: the package there is the same as here."""
    return registry.load(runtime).DEVICES


def at(address: str) -> Ssh:
    """The machine of "[user@]host[:port]"; raises WrongCall."""
    host, colon, port = address.rpartition(":") if ":" in address.rpartition("]")[2] else (address, "", "")
    if not host.strip("[]") or host.startswith("-") or (colon and not port.isdecimal()):
        raise WrongCall(f"{address!r} is no machine", hint="for example ssh://user@host:22/ort:cpu")
    return Ssh(host.strip("[]"), int(port) if port else None)


def _python() -> str:
    return os.environ.get(PYTHON, "python3")


def _threads() -> str:
    return os.environ.get("RWKV_EXPORT_THREADS", "0")
