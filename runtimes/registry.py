"""Finds plug-ins by listing a folder; no decorators, no central list, and a plug-in's own ImportError is not hidden."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import cast

from runtimes import backends, remote
from runtimes.contract import Runtime
from runtimes.errors import Missing, WrongCall, did_you_mean


def plugins(package: ModuleType) -> tuple[str, ...]:
    """Names of the public modules in a package folder, sorted."""
    return tuple(sorted(item.name for item in pkgutil.iter_modules(package.__path__) if item.name[0] != "_"))


def load_plugin(package: ModuleType, name: str, *required: str) -> ModuleType:
    """One module of a package folder; raises TypeError naming the file where it lacks what its Protocol requires."""
    module = importlib.import_module(f"{package.__name__}.{name}")
    for attribute in required:
        if not hasattr(module, attribute):
            raise TypeError(f"{module.__file__} has no {attribute}, which every plug-in of {package.__name__} has")
    return module


def names() -> tuple[str, ...]:
    """The runtimes there are: the files of runtimes/backends."""
    return plugins(backends)


def load(name: str) -> Runtime:
    """The runtime called `name`, "ort", or "ssh://board/ort" on another machine; raises WrongCall with a suggestion."""
    if remote.is_remote(name):
        return cast(Runtime, remote.load(name))
    if name not in names():
        hint = f"other machines are written {name}://ADDRESS/RUNTIME:DEVICE" if name in remote.schemes() else None
        raise WrongCall(f"unknown runtime {name!r}", hint=hint or did_you_mean(name, names()))
    return cast(Runtime, load_plugin(backends, name, "READS", "DEVICES", "missing", "open_session"))


def parse(place: str) -> tuple[str, str]:
    """Split "ort:cpu" into runtime and device, both checked; "ort" alone means its first device."""
    where, inner = remote.split(place) if remote.is_remote(place) else ("", place)
    name, _, device = inner.partition(":")
    name = where + name
    devices = load(name).DEVICES
    device = device or devices[0]
    if device not in devices:
        raise WrongCall(f"runtime {name} has no device {device!r}", hint=did_you_mean(device, devices))
    return name, device


def require(place: str) -> tuple[Runtime, str]:
    """The runtime and device of `place`, usable on this machine; raises WrongCall or Missing."""
    name, device = parse(place)
    runtime = load(name)
    reason = runtime.missing(device)
    if reason:
        raise Missing(f"{name}:{device} cannot run here: {reason}", hint="see `rwkv-export targets`")
    return runtime, device
