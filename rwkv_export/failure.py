"""Turns exceptions into a message on stderr and an exit code; it decides nothing about what is an error."""

from __future__ import annotations

import errno
import sys
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typer import TyperException

BUG = 70
"""Exit code of an unexpected exception (EX_SOFTWARE of sysexits.h), apart from 1, which says that a check failed."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
UNUSABLE_PATH = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)


def report(error: Exception) -> int:
    """Say what went wrong on stderr; returns the exit code: 1 check failed, 2 wrong call, 3 missing, 70 our bug."""
    from typer import TyperException

    from runtimes.errors import RwkvExportError, absent

    error = absent(error) or error
    if isinstance(error, RwkvExportError):
        return _say(error.message, error.hint, error.exit_code)
    if isinstance(error, TyperException):
        return _say(*_usage(error), error.exit_code)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return _say(f"disk full while writing {error.filename or 'a file'}", "free some space, then run it again", 3)
    if isinstance(error, OSError) and error.errno in UNUSABLE_PATH and error.filename:
        return _say(f"cannot use {error.filename}: {error.strerror}", "choose another path", 2)
    traceback.print_exception(error)
    print("\nThis is a bug in rwkv-export. Please report it, with the lines above and the command.", file=sys.stderr)
    return BUG


def _usage(error: TyperException) -> tuple[str, str]:
    """Message and hint of a command line that does not parse; suggestions move from the message to the hint."""
    message, _, suggested = error.format_message().partition(" Did you mean ")
    if faults := getattr(error.__cause__, "errors", None):  # pydantic's, who does not repeat the value
        message += f", not {faults()[0]['input']}"
    possible = ", ".join(getattr(error, "possibilities", None) or ())
    if possible:
        message, suggested = getattr(error, "message", message), f"{possible}?"
    context = getattr(error, "ctx", None)
    advice = f"see `{context.command_path if context else 'rwkv-export'} --help`"
    return message.rstrip("."), f"did you mean {suggested} {advice}" if suggested else advice


def _say(message: str, hint: str | None, code: int) -> int:
    from rwkv_export.output import stderr

    console = stderr()
    console.print("error:", style="bold red", end=" ")
    console.print(message, soft_wrap=True)
    if hint:
        console.print()
        console.print("hint:", style="bold cyan", end=" ")
        console.print(hint, soft_wrap=True)
    return code
