"""Python environments apart from this one, for toolchains that cannot live here: where they are and whether whole.

One file for each; the folder is the list. exporter/environments.py makes them.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

MARK = "whole.json"
"""Written last: an environment without it was interrupted, and is not taken for one."""


@dataclass(frozen=True)
class Environment:
    """What an environment holds; data, no code.

    name:     as `rwkv-export setup` calls it
    summary:  one line for people
    pins:     exact requirements; pip installs them without looking at what they ask for themselves
    resolved: those of which it does look, and which come first
    imports:  modules that must import afterwards
    systems:  (system, machine) pairs it exists for, as `platform` names them
    pythons:  the oldest and the newest Python it exists for
    """

    name: str
    summary: str
    pins: tuple[str, ...]
    resolved: tuple[str, ...]
    imports: tuple[str, ...]
    systems: tuple[tuple[str, str], ...]
    pythons: tuple[tuple[int, int], tuple[int, int]]

    @property
    def folder(self) -> Path:
        """Where it is, or would be."""
        return cache_folder() / "environments" / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def digest(self) -> str:
        """Of all that decides what is in it, the Python it is made with included."""
        parts = (*self.pins, *self.resolved, sys.version)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def state(self) -> str:
        """ "absent", "unfinished", "outdated" (made with other pins or another Python) or "ready"."""
        if not self.folder.exists():
            return "absent"
        try:
            mark = json.loads((self.folder / MARK).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return "unfinished"
        return "ready" if mark == {"digest": self.digest} and self.python.exists() else "outdated"

    def unfit(self) -> str | None:
        """Why it cannot be made on this machine with this Python, as a sentence, or None."""
        here = platform.system(), platform.machine()
        if here not in self.systems:
            known = " and ".join(f"{system} on {machine}" for system, machine in self.systems)
            return f"the {self.name} environment is for {known}, this is {here[0]} {here[1]}"
        oldest, newest = self.pythons
        if not oldest <= sys.version_info[:2] <= newest:
            span = f"{oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]}"
            return f"the {self.name} environment needs Python {span}, this is {platform.python_version()}"
        return None

    def missing(self) -> str | None:
        """Why it cannot be used, with what to do about it, or None."""
        if reason := self.unfit():
            return reason
        state = self.state()
        return (
            None if state == "ready" else f"the {self.name} environment is {state}, run `rwkv-export setup {self.name}`"
        )


def cache_folder() -> Path:
    """Where this package keeps what can be made again, in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rwkv-export"


def load(name: str) -> Environment:
    """The environment of the file `name` in this folder."""
    found = importlib.import_module(f"{__name__}.{name}").ENVIRONMENT
    if not isinstance(found, Environment):
        raise TypeError(f"runtimes/environments/{name}.py has no ENVIRONMENT")
    return found
