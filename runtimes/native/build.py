"""Compiles the kernels with this machine's C++ compiler, once, into the user's cache folder; it loads nothing."""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from runtimes.errors import Missing

VARIABLES = ("RWKV_EXPORT_CXX", "CXX")
COMPILERS = ("c++", "g++", "clang++")
HERE = Path(__file__).parent
SOURCE = HERE / "kernels.cpp"
TUNE = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
FLAGS = ("-O3", TUNE, "-std=c++17", "-ffp-contract=fast", "-fvisibility=hidden", "-shared", "-fPIC")
SECONDS = 300  # after which a compiler is taken to hang


def missing() -> str | None:
    """Why the kernels cannot be built here, or None; it compiles nothing."""
    if os.name != "posix":
        return f"the native kernels are for Linux and macOS, this is {platform.system()}"
    if find_spec("onnx") is None:
        return "the Python package onnx is not installed"
    command = _compiler()
    if not command:
        return f"there is no C++ compiler ({', '.join(COMPILERS)}; {VARIABLES[0]} names another)"
    if not shutil.which(command[0]):
        return f"the C++ compiler {command[0]!r} is not there"
    return None


def library(*flags: str) -> Path:
    """The compiled library for this machine, built now if it was not yet; `flags` follow our own. Raises Missing."""
    if reason := missing():
        raise Missing(reason, hint="install g++ or clang, or run on ort:cpu")
    command = (*_compiler(), *FLAGS, *flags)
    path = _folder() / _digest(command) / "kernels.so"
    if not path.exists():
        _build(command, path)
    return path


def _compiler() -> list[str]:
    """The compiler's command line, empty where there is none."""
    for variable in VARIABLES:
        if named := os.environ.get(variable):
            return shlex.split(named)
    return [found] if (found := next(filter(None, map(shutil.which, COMPILERS)), None)) else []


def _folder() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "rwkv-export" / "native"


def _digest(command: Sequence[str]) -> str:
    """Of all that decides what the library is: sources, compiler, flags, and the processor it is tuned to."""
    digest = hashlib.sha256()
    for file in sorted([SOURCE, *HERE.glob("*.h")]):
        digest.update(file.read_bytes())
    for text in (*command, _run([command[0], "--version"]), _processor()):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:24]


@cache
def _processor() -> str:
    """What "native" means here."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text(encoding="utf-8").splitlines() if cpus.exists() else []
    kept = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(kept)])


def _build(command: Sequence[str], path: Path) -> None:
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _run([*command, str(SOURCE), "-o", str(part)])
        part.replace(path)
    except OSError as error:
        raise Missing(f"cannot write {path}: {error.strerror}", hint="set XDG_CACHE_HOME") from error
    finally:
        part.unlink(missing_ok=True)


def _run(command: Sequence[str]) -> str:
    """What the compiler printed; raises Missing with its first error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{command[0]} does not run: {error}", hint="install g++ or clang, or run on ort:cpu") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        first = next(iter([*errors, *done.stderr.splitlines()]), f"exit status {done.returncode}")
        raise Missing(f"{command[0]} cannot compile the native kernels: {first}", hint="try another RWKV_EXPORT_CXX")
    return done.stdout
