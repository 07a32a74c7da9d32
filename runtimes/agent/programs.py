"""Programs that answer for a session where there is no Python: built when first asked for, kept in the user's cache.

A runtime that has one says so in its file of runtimes/backends: PROGRAM.
"""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from runtimes import registry
from runtimes.compiling import with_headers
from runtimes.environments import cache_folder
from runtimes.errors import CheckFailed, Missing, RwkvExportError, WrongCall

MACHINES = ("aarch64", "x86_64")
"""As `uname -m` calls those that such programs are for."""
SHARED = Path(__file__).parent
SCRIPTS = ("*.sh", "*.txt")
LACKING = 3  # exit status of a script where something is not installed
SECONDS = 900  # after which a download or a compiler is taken to hang


@dataclass(frozen=True)
class Program:
    """One program.

    name:    as it is called in its folder, beside its loader and its libraries
    script:  `script host|aarch64 FOLDER` makes the folder, with all that it needs of the system; exit status 3 where
             something is not installed. The .cpp files beside it are its sources
    devices: what may follow the runtime's name, the default first
    package: the Python package whose release decides which libraries it is linked to
    """

    name: str
    script: Path
    devices: tuple[str, ...]
    package: str

    def folder(self, machine: str) -> Path:
        """The folder for "aarch64" or "x86_64", built now if it was not yet; raises Missing, CheckFailed."""
        path = cache_folder() / "programs" / f"{self.name}-{machine}-{self._digest()}"
        if not path.exists():
            self._build(_way(machine), path)
        return path

    def _digest(self) -> str:
        """Of all that decides what the program is."""
        own, digest = self.script.parent, hashlib.sha256()
        sources = [file for source in sorted(own.glob("*.cpp")) for file in with_headers(source)]
        scripts = sorted(file for folder in (own, SHARED) for ending in SCRIPTS for file in folder.glob(ending))
        for file in (*dict.fromkeys(sources), *scripts):
            digest.update(file.read_bytes())
        try:
            digest.update(version(self.package).encode())
        except PackageNotFoundError as error:
            raise Missing(f"the Python package {self.package} is not installed") from error
        return digest.hexdigest()[:24]

    def _build(self, way: str, path: Path) -> None:
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        environment = {**os.environ, "PYTHON": sys.executable}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            done = subprocess.run(
                ["sh", str(self.script), way, str(part)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            if done.returncode:
                raise _refused(f"{self.name} cannot be built", way, done)
            part.rename(path)
        except (OSError, subprocess.TimeoutExpired) as error:
            if not path.exists():  # another process was faster
                raise Missing(f"{self.name} cannot be built: {error}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)


def of(runtime: str) -> Program:
    """The program of "pte"; raises WrongCall for a runtime without one."""
    if found := _of(runtime):
        return found
    have = ", ".join(filter(_of, registry.names()))
    raise WrongCall(f"{runtime} has no program for machines without Python", hint=f"those that have: {have}")


def _of(runtime: str) -> Program | None:
    found = getattr(registry.load(runtime), "PROGRAM", None)
    return found if isinstance(found, Program) else None


def _way(machine: str) -> str:
    if machine not in MACHINES:
        raise Missing(f"there is no program for {machine!r}, which is no 64-bit machine: {' and '.join(MACHINES)} only")
    if (platform.system(), platform.machine()) == ("Linux", machine):
        return "host"
    if machine != "aarch64":
        raise Missing(f"programs for {machine} are built on Linux on {machine}, this is {platform.platform()}")
    return machine


def _refused(what: str, way: str, done: subprocess.CompletedProcess[str]) -> RwkvExportError:
    said = done.stderr.strip().splitlines() or ["it does not say why"]
    why = next((line for line in said if "error:" in line), said[-1]).removeprefix("error: ")
    if done.returncode != LACKING:
        return CheckFailed(f"{what}: {why}")
    compiler = "g++" if way == "host" else "g++-aarch64-linux-gnu"
    return Missing(f"{what}: {why}", hint=f"apt install {compiler} binutils")
