"""Rows of a run as they come, in a file of JSON lines that survives whatever ends the run; it judges nothing.

Each line is a results document of one row, and is on the disk before the next row is begun.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from runtimes.errors import WrongCall
from runtimes.schema import to_plain
from validation import machine, outcome
from validation.outcome import Latency, Parity, Quality

Row = Parity | Quality | Latency
Keep = Callable[[Row], None]
"""Told of every row as soon as it is known."""


def forget(row: Row) -> None:
    """Keeps nothing."""


class Journal:
    """The rows of the run whose results will be in the file `results`, beside it until `end`.

    stopped: where the rows of an earlier run are that did not get that far, None where there are none. They are never
             overwritten.

    Raises WrongCall while another run writes the same results, OSError where nothing can be written.
    """

    def __init__(self, results: Path) -> None:
        self.path = results.with_name(results.name + outcome.LINES)
        self._machine = machine.describe()
        self.stopped = _set_aside(self.path)
        self._stream = self.path.open("ab", buffering=0)
        _lock(self._stream)

    def keep(self, row: Row) -> None:
        """Append a row; raises OSError, and then the file is as it was."""
        document = to_plain(outcome.collected([row], self._machine, machine.now()))
        line = json.dumps(document, allow_nan=False).encode() + b"\n"
        before = self._stream.tell()
        try:
            written = self._stream.write(line)
            if written < len(line):  # a disk that has room for a part of it
                self._stream.write(line[written:])
            os.fsync(self._stream.fileno())
        except OSError as error:
            os.truncate(self.path, before)
            error.filename = error.filename or self.path
            raise

    def end(self) -> None:
        """The results are in their file, or there are none."""
        self._stream.close()
        self.path.unlink()

    def abandon(self) -> Path | None:
        """The run ended before its results were written: where its rows stay, None where there are none."""
        empty = not self._stream.tell()
        self._stream.close()
        if empty:
            self.path.unlink()
        return None if empty else self.path


def _set_aside(path: Path) -> Path | None:
    if not path.exists():
        return None
    with path.open("rb") as stream:
        try:
            _lock(stream)
        except BlockingIOError:
            raise WrongCall(f"another run is writing {path}", hint="choose another file") from None
        if not stream.read(1):
            return None
        number = 1
        while (aside := path.with_name(f"{path.stem}.stopped-{number}{outcome.LINES}")).exists():
            number += 1
        return path.rename(aside)


def _lock(file: IO[bytes]) -> None:
    """Until the file is closed; raises BlockingIOError where another process has it. Windows goes without."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
