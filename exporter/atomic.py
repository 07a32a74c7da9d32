"""Writes a folder so that it appears whole or not at all; knows nothing of what is in it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtimes.errors import Missing, WrongCall

AT_FDCWD = -100  # linux/fcntl.h
RENAME_EXCHANGE = 2  # linux/fs.h


@contextmanager
def replacing(destination: Path) -> Iterator[Path]:
    """A temporary folder beside `destination` that takes its place when the block ends without an exception.

    Raises WrongCall where the place cannot be written and Missing where the disk is full; an older folder stays as it
    was in both cases, and when the process is killed.
    """
    parent = destination.parent
    temporary = parent / f".{destination.name}.{os.getpid()}.part"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        temporary.mkdir()
        yield temporary
        _flush(temporary)
        _take_place(temporary, destination)
    except OSError as error:
        raise _explained(error, parent) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(temporary: Path, destination: Path) -> None:
    if not destination.exists():
        temporary.rename(destination)
    elif not _exchange(temporary, destination):
        older = temporary.with_suffix(".older")
        destination.rename(older)
        temporary.rename(destination)
        shutil.rmtree(older, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one system call; False where the system has none."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    failed: int = libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    return not failed


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sweep(parent: Path) -> None:
    """Remove temporary folders whose process is gone."""
    for path in parent.glob(".*.part"):
        match = re.fullmatch(r"\..+\.(\d+)\.part", path.name)
        if match and path.is_dir() and not _alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    with contextlib.suppress(PermissionError):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True


def _explained(error: OSError, parent: Path) -> WrongCall | Missing:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(parent).free >> 20 if parent.exists() else 0
        return Missing(f"the disk of {parent} is full ({free} MiB free)", hint="free some space, or choose another -o")
    place = error.filename or parent
    return WrongCall(f"cannot write to {place}: {error.strerror}", hint="choose another folder with -o")
