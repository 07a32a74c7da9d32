"""Ways to other machines, a file each, and what they share; the folder is the list of schemes."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from runtimes.contract import Artifact, Session
from runtimes.errors import Missing
from runtimes.manifest import FILE_NAME, File, sha256
from runtimes.remote.conditions import Conditions

Files = Sequence[tuple[Path, File]]
"""Where a file is here, and what it shall be there."""


class Machine(Protocol):
    """A machine that a place names, which nothing has asked yet."""

    def open_session(self, artifact: Artifact, place: str, where: str) -> Session:
        """Copy what it lacks there and open the artifact on its `place`, which `where` stands before.

        Raises Missing where the machine is not reached or lacks something; AgentDied.
        """

    def conditions(self) -> Conditions:
        """Temperatures, governors and frequencies as they are now, as far as it tells; raises Missing."""


class Transport(Protocol):
    """A module of this folder; its name is the scheme."""

    def at(self, address: str) -> Machine:
        """The machine of "user@board:22"; raises WrongCall for what cannot be meant."""

    def devices(self, runtime: str) -> tuple[str, ...]:
        """What may follow "pte:" there, the default first; raises WrongCall for a runtime that is not had there."""


def program(variable: str, default: str, *, package: str) -> list[str]:
    """The user's own program and its options, "ssh -i key"; raises Missing where Debian's `package` lacks."""
    words = shlex.split(os.environ.get(variable, "")) or [default]
    if not shutil.which(words[0]):
        raise Missing(f"there is no program {words[0]}", hint=f"apt install {package}, or name another in {variable}")
    return words


def listed(artifact: Artifact) -> tuple[str, Files]:
    """A name for the content of an artifact, and its files, the manifest among them."""
    listing = artifact.folder / FILE_NAME
    own = File(FILE_NAME, listing.stat().st_size, sha256(listing))
    return own.sha256, [(artifact.folder / file.path, file) for file in (*artifact.manifest.files, own)]


def send(path: Path, stream: BinaryIO, start: int) -> None:
    """Write a file from byte `start` on; raises OSError."""
    with path.open("rb") as file:
        file.seek(start)
        while content := file.read(1 << 20):
            stream.write(content)


def last_line(said: bytes) -> str:
    """What a program printed last."""
    return said.decode(errors="replace").strip().rpartition("\n")[2]
