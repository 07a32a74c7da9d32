"""Places on other machines, "ssh://user@board/ort:cpu": a runtime there, reached through an agent; knows no runtime."""

from __future__ import annotations

from dataclasses import dataclass

from runtimes.contract import Artifact, Session
from runtimes.errors import WrongCall, did_you_mean

SCHEMES = ("ssh",)


@dataclass(frozen=True)
class RemoteRuntime:
    """A runtime of runtimes/backends as another machine has it. where: "ssh://user@board/"; name: "ort"."""

    where: str
    name: str
    READS: tuple[str, ...]
    DEVICES: tuple[str, ...]

    def missing(self, device: str) -> str | None:
        """Only opening a session asks the other machine, once."""
        return None

    def open_session(self, artifact: Artifact, device: str) -> Session:
        """Copy the artifact there, as far as it is not, and open it; raises Missing where something lacks there."""
        from runtimes.remote import ssh

        return ssh.at(address(self.where)).open_session(artifact, f"{self.name}:{device}", self.where)


def is_remote(name: str) -> bool:
    """Whether this names a place on another machine."""
    return "://" in name


def address(place: str) -> str:
    """ "user@board:22" of "ssh://user@board:22/ort:cpu"."""
    return place.partition("://")[2].partition("/")[0]


def split(place: str) -> tuple[str, str]:
    """ "ssh://board/ort:cpu" as ("ssh://board/", "ort:cpu"); raises WrongCall."""
    from runtimes.remote import ssh

    scheme, _, rest = place.partition("://")
    if scheme not in SCHEMES:
        raise WrongCall(f"unknown way {scheme!r} to another machine", hint=did_you_mean(scheme, SCHEMES))
    _, _, inner = rest.partition("/")
    if not inner:
        raise WrongCall(f"{place!r} names no runtime there", hint="for example ssh://user@host/ort:cpu")
    ssh.at(address(place))
    return f"{scheme}://{address(place)}/", inner


def load(name: str) -> RemoteRuntime:
    """The runtime called "ssh://board/ort"; raises WrongCall."""
    from runtimes import registry

    where, inner = split(name)
    local = registry.load(inner)
    return RemoteRuntime(where, inner, local.READS, local.DEVICES)
