"""Places on other machines, "ssh://user@board/ort:cpu", "adb://SERIAL/pte:cpu-direct"; knows no runtime and no way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from runtimes.contract import Artifact, Session
from runtimes.errors import WrongCall, did_you_mean

if TYPE_CHECKING:
    from runtimes.remote.transports import Machine, Transport


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
        return machine(self.where).open_session(artifact, f"{self.name}:{device}", self.where)


def is_remote(name: str) -> bool:
    """Whether this names a place on another machine."""
    return "://" in name


def address(place: str) -> str:
    """ "user@board:22" of "ssh://user@board:22/ort:cpu"."""
    return place.partition("://")[2].partition("/")[0]


def machine(place: str) -> Machine:
    """The machine of a place on another one; raises WrongCall."""
    return _transport(place).at(address(place))


def split(place: str) -> tuple[str, str]:
    """ "ssh://board/ort:cpu" as ("ssh://board/", "ort:cpu"); raises WrongCall."""
    machine(place)
    scheme, _, rest = place.partition("://")
    _, _, inner = rest.partition("/")
    if not inner:
        raise WrongCall(f"{place!r} names no runtime there", hint=f"for example {place.rstrip('/')}/ort:cpu")
    return f"{scheme}://{address(place)}/", inner


def load(name: str) -> RemoteRuntime:
    """The runtime called "ssh://board/ort"; raises WrongCall."""
    from runtimes import registry

    where, inner = split(name)
    return RemoteRuntime(where, inner, registry.load(inner).READS, _transport(name).devices(inner))


def schemes() -> tuple[str, ...]:
    """The ways there are to other machines: the files of runtimes/remote/transports."""
    from runtimes import registry
    from runtimes.remote import transports

    return registry.plugins(transports)


def _transport(place: str) -> Transport:
    from runtimes import registry
    from runtimes.remote import transports

    scheme = place.partition("://")[0]
    if scheme not in schemes():
        raise WrongCall(f"unknown way {scheme!r} to another machine", hint=did_you_mean(scheme, schemes()))
    return cast("Transport", registry.load_plugin(transports, scheme, "at", "devices"))
