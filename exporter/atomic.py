"""Writes a folder so that it appears whole or not at all; knows nothing of what is in it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from exporter import journal
from runtimes.errors import Missing, WrongCall

AT_FDCWD = -100  # linux/fcntl.h
EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h, RENAME_SWAP of macOS' sys/stdio.h


@contextmanager
def replacing(destination: Path, job: journal.Job | None = None) -> Iterator[Path]:
    """A temporary folder that takes the place of `destination` when the block ends without an exception.

    It lies in a hidden folder beside `destination`, and is empty, unless the same `job` was killed or interrupted
    after it had noted what it wrote (exporter/journal.py); whatever else ends the block removes the hidden folder.

    Raises WrongCall where the place cannot be written and Missing where the disk is full; an older folder stays as it
    was in both cases, and when the process is killed.
    """
    parent = destination.parent
    try:
        if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
            raise WrongCall(f"{destination} exists and is not a folder", hint="choose another folder with -o")
        parent.mkdir(parents=True, exist_ok=True)
        with _hidden(destination) as hidden:
            folder = journal.begin(hidden, job)
            yield folder
            _flush(folder)
            journal.end(hidden)
            _take_place(folder, destination)
    except OSError as error:
        raise _explained(error, parent) from error


@contextmanager
def _hidden(destination: Path) -> Iterator[Path]:
    """A locked folder, the same each time unless another process is in it; removed, if nothing can be continued."""
    parent, hidden, kept = destination.parent, None, False
    with ExitStack() as stack:
        try:
            with _locked(parent):  # nobody sweeps, and nobody else takes the folder, before it is locked
                _sweep(parent)
                hidden = _own(destination)
                if hidden.exists() and _in_use(hidden):
                    hidden = hidden.with_name(f".{destination.name}.{secrets.token_hex(4)}.part")
                hidden.mkdir(exist_ok=True)
                stack.enter_context(_locked(hidden))
            yield hidden
        except KeyboardInterrupt as interrupt:
            kept = hidden is not None and _can_continue(hidden, destination)
            if kept:
                interrupt.add_note(f"what was written is in {hidden}: the same command continues there")
            raise
        finally:
            if hidden is not None and not kept:
                with _locked(parent):
                    shutil.rmtree(hidden, ignore_errors=True)


def _can_continue(hidden: Path, destination: Path) -> bool:
    return hidden == _own(destination) and journal.can_continue(hidden)


def _own(destination: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(destination.name)).hexdigest()[:8]
    return destination.with_name(f".{destination.name}.{digest}.part")


def _take_place(temporary: Path, destination: Path) -> None:
    try:
        temporary.rename(destination)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not _exchange(temporary, destination):
            older = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.older")
            destination.rename(older)
            try:
                temporary.rename(destination)
            except BaseException:
                older.rename(destination)
                raise
            shutil.rmtree(older, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one system call; False where the system or the file system has none."""
    libc = ctypes.CDLL(None)
    paths = os.fsencode(one), os.fsencode(other)
    failed = True
    if hasattr(libc, "renameat2"):
        failed = bool(libc.renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], EXCHANGE))
    elif hasattr(libc, "renamex_np"):
        failed = bool(libc.renamex_np(*paths, EXCHANGE))
    return not failed


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sweep(parent: Path) -> None:
    """Remove what killed processes left and cannot be continued; a folder that was moved aside is moved back."""
    for path in parent.glob(".*.*"):
        match = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.(part|older)", path.name)
        if match and match[2] == "older" and not (parent / match[1]).exists():
            with contextlib.suppress(OSError):
                path.rename(parent / match[1])
        elif match and path.is_dir() and not _in_use(path) and not _can_continue(path, parent / match[1]):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Within the block nobody else has the folder's lock, which ends with the process, however that ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: what is left there is never swept
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _in_use(folder: Path) -> bool:
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(handle)
    except OSError:
        return True
    return False


def _explained(error: OSError, parent: Path) -> WrongCall | Missing:
    free = shutil.disk_usage(parent).free >> 20 if parent.exists() else 0
    # numpy.tofile and shutil.copytree report a full disk without its number.
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or (error.errno is None and not free):
        return Missing(f"the disk of {parent} is full ({free} MiB free)", hint="free some space, or choose another -o")
    place = error.filename or parent
    return WrongCall(f"cannot write to {place}: {error.strerror or error}", hint="choose another folder with -o")
