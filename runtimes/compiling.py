"""Compiles C++ with this machine's compiler, once, into the user's cache folder; it loads nothing."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from runtimes.errors import Missing

VARIABLES = ("RWKV_EXPORT_CXX", "CXX")
COMPILERS = ("c++", "g++", "clang++")
TUNE = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
INCLUDED = re.compile(r'^#include "(.+)"$', re.MULTILINE)
SECONDS = 300  # after which a compiler is taken to hang


@dataclass(frozen=True)
class Library:
    """A shared library made of one C++ file.

    what:    as messages call it, "the native kernels"
    source:  the file; it is made anew when that or a header of ours that it includes changes
    flags:   for the compiler
    links:   for the linker
    instead: the place that does without it
    """

    what: str
    source: Path
    flags: tuple[str, ...]
    instead: str
    links: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """Why it cannot be built here, or None; it compiles nothing."""
        if os.name != "posix":
            return f"{self.what} are for Linux and macOS, this is {platform.system()}"
        command = _compiler()
        if not command:
            return f"there is no C++ compiler ({', '.join(COMPILERS)}; {VARIABLES[0]} names another)"
        if not shutil.which(command[0]):
            return f"the C++ compiler {command[0]!r} is not there"
        return None

    def built(self) -> Path:
        """The compiled library for this machine, built now if it was not yet; raises Missing."""
        if reason := self.missing():
            raise Missing(reason, hint=f"install g++ or clang, or run on {self.instead}")
        compiler = _compiler()
        path = _folder() / self.source.parent.name / self._digest(compiler) / f"{self.source.stem}.so"
        if not path.exists():
            self._build(compiler, path)
        return path

    def _digest(self, compiler: Sequence[str]) -> str:
        """Of all that decides what the library is: sources, compiler, flags, and the processor it is tuned to."""
        digest = hashlib.sha256()
        for file in with_headers(self.source):
            digest.update(file.read_bytes())
        words = (*compiler, *self.flags, *self.links)
        for text in (*words, self._run([compiler[0], "--version"]), _processor()):
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()[:24]

    def _build(self, compiler: Sequence[str], path: Path) -> None:
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._run([*compiler, *self.flags, str(self.source), *self.links, "-o", str(part)])
            part.replace(path)
        except OSError as error:
            raise Missing(f"cannot write {path}: {error.strerror}", hint="set XDG_CACHE_HOME") from error
        finally:
            part.unlink(missing_ok=True)

    def _run(self, command: Sequence[str]) -> str:
        """What the compiler printed; raises Missing with its first error."""
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            hint = f"install g++ or clang, or run on {self.instead}"
            raise Missing(f"{command[0]} does not run: {error}", hint=hint) from error
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            first = next(iter([*errors, *done.stderr.splitlines()]), f"exit status {done.returncode}")
            raise Missing(f"{command[0]} cannot compile {self.what}: {first}", hint="try another RWKV_EXPORT_CXX")
        return done.stdout


def with_headers(source: Path) -> list[Path]:
    """The file, and all that it and its headers include in quotes."""
    files = [source.resolve()]
    for file in files:
        inside = INCLUDED.findall(file.read_text(encoding="utf-8"))
        headers = dict.fromkeys((file.parent / name).resolve() for name in inside)
        files += [header for header in headers if header not in files]
    return files


def _compiler() -> list[str]:
    """The compiler's command line, empty where there is none."""
    for variable in VARIABLES:
        if named := os.environ.get(variable):
            return shlex.split(named)
    return [found] if (found := next(filter(None, map(shutil.which, COMPILERS)), None)) else []


def _folder() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "rwkv-export"


@cache
def _processor() -> str:
    """What "native" means here."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text(encoding="utf-8").splitlines() if cpus.exists() else []
    kept = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(kept)])
