"""Talking to RKNN Toolkit 2's object: its settings, its return codes, and what it prints; no graph is known here."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from runtimes.errors import WrongCall

T = TypeVar("T")

ERROR = re.compile(r"(\x1b\[[0-9;]*m)*E\b.*(?<!Unkown op target: 0)$")
"""Lines that say what went wrong; one that every build prints, right ones too, is not among them."""


def configured(soc: str, **settings: Any) -> Any:
    """A new object of the toolkit, which tells everything it does."""
    from rknn.api import RKNN

    rknn = RKNN(verbose=True)
    do("config", rknn.config(target_platform=soc, **settings))
    return rknn


def do(what: str, code: int) -> None:
    """Raise WrongCall where a call of the toolkit returned anything but 0."""
    if code:
        raise WrongCall(f"the toolkit's {what} failed with {code}")


def overheard(work: Callable[[], T]) -> tuple[T, str]:
    """What `work` returns and what was printed meanwhile, by compiled code too; its last error goes into WrongCall."""
    before = [(stream.fileno(), os.dup(stream.fileno())) for stream in (sys.stdout, sys.stderr)]
    with tempfile.TemporaryFile() as file:
        trouble = None
        try:
            for number, _ in before:
                os.dup2(file.fileno(), number)
            made = work()
        except WrongCall as error:
            trouble = error
        finally:
            sys.stdout.flush()
            for number, copy in before:
                os.dup2(copy, number)
                os.close(copy)
        file.seek(0)
        said = file.read().decode(errors="replace")
    if trouble is not None:
        errors = [line for line in said.splitlines() if ERROR.match(line)]
        raise WrongCall(f"{trouble.message}: {errors[-1] if errors else said.strip()[-200:]}") from trouble
    return made, said


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Within the block this process stands in `folder`."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
