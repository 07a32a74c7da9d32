"""What a reader may do with outside bytes: read them, or refuse them in one sentence, soon and in little memory."""

from __future__ import annotations

import importlib
import pkgutil
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType

from runtimes.errors import RwkvExportError
from tests.fuzz import readers

SECONDS = 2.0
"""CPU time of one input."""
MEMORY = 256 << 20
"""Bytes by which one input may raise the most memory that the process ever held; inputs are a few kilobytes."""
ROOT = Path(__file__).parents[2]


class Broken(Exception):
    """A reader did what it must not; `where` is the innermost line of ours, by which findings are told apart."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} at {where}")
        self.where = where


class TooSlow(BaseException):
    """Raised in a reader that took too long, past its own `except Exception`."""


@dataclass(frozen=True)
class Reader:
    """A file of readers/."""

    name: str
    module: ModuleType

    def seeds(self, folder: Path) -> Iterator[bytes]:
        """Inputs to start from; what they need lies in `folder` from then on."""
        yield from self.module.seeds(folder)

    def judge(self, data: bytes, folder: Path) -> str | None:
        """The refusal of `data`, None where it could be read; raises Broken for anything else."""
        refusals = (RwkvExportError, *getattr(self.module, "REFUSALS", ()))
        memory, before = _peak(), time.process_time()
        try:
            with _limited():
                self.module.read(data, folder)
                said = None
        except refusals as error:
            said = str(error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # Rust's panics are no Exception
            raise Broken(f"{type(error).__name__}: {str(error)[:200]}", _where(error)) from error
        if (took := time.process_time() - before) > SECONDS:
            raise Broken(f"{took:.1f} s of CPU time", self.name)
        if (grown := _peak() - memory) > MEMORY:
            raise Broken(f"{grown >> 20} MiB for {len(data)} bytes", self.name)
        if said is not None and (not said.strip() or "\n" in said.strip()):
            raise Broken(f"a refusal that is not one sentence: {said[:200]!r}", self.name)
        return said


def names() -> list[str]:
    """Every reader."""
    return sorted(module.name for module in pkgutil.iter_modules(readers.__path__))


def load(name: str) -> Reader:
    """One of `names`."""
    return Reader(name, importlib.import_module(f"{readers.__name__}.{name}"))


@contextmanager
def _limited() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"{SECONDS:.0f} s of CPU time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def _where(error: BaseException) -> str:
    """File and line of the innermost frame that is ours, and the exception's type."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)]
    ours = [frame for frame in inside if "tests/fuzz" not in frame.filename]
    last = (ours or frames)[-1]
    return f"{Path(last.filename).name}:{last.lineno} {type(error).__name__}"
