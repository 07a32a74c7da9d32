"""Notes of what a stopped export had written, so that the same job continues there; it writes no data itself.

A hidden folder holds the folder that becomes the artifact and, beside it, the journal, a file of JSON lines: the job,
then a line for each complete piece of a data file, in the file's order.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from runtimes.files import write_text_atomically

FILE = "journal.jsonl"
FOLDER = "artifact"
KEPT = 7 * 24 * 3600  # seconds for which a stopped export is kept, if nobody continues it

Job = Mapping[str, object]
"""All that decides what is written, as JSON."""


@dataclass(frozen=True)
class Note:
    """Bytes of the data file `file` that are complete; `name` is the tensor's."""

    file: str
    name: str
    offset: int
    length: int
    crc32: int


class Journal:
    """The journal in a hidden folder, which may be absent, torn or altered: it ends before the first odd line."""

    def __init__(self, hidden: Path) -> None:
        self.path = hidden / FILE

    def job(self) -> bytes | None:
        """The line that tells of the job, or None."""
        return next(iter(self._lines()), None)

    def notes(self) -> list[Note]:
        """What was noted, in order."""
        found = []
        for line in self._lines()[1:]:
            try:
                found.append(Note(**json.loads(line)))
            except (ValueError, TypeError):
                break
        return found

    def keep(self, notes: Sequence[Note]) -> None:
        """Forget all others."""
        lines = [self._lines()[0].decode(), *(json.dumps(asdict(note)) for note in notes)]
        write_text_atomically(self.path, "\n".join(lines) + "\n")

    def add(self, note: Note) -> None:
        """Note what has been written."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(note)) + "\n")

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines() if self.path.is_file() else []


def begin(hidden: Path, job: Job | None) -> Path:
    """The folder to write to in `hidden`: empty, but for data files that the same job has begun."""
    folder, journal, line = hidden / FOLDER, Journal(hidden), json.dumps(job, sort_keys=True)
    if job is None or journal.job() != line.encode():
        _empty(hidden)
    folder.mkdir(exist_ok=True)
    _empty(folder, but={note.file for note in journal.notes()})
    if job is not None and journal.job() is None:
        journal.path.write_text(line + "\n", encoding="utf-8")
    return folder


def of(data: Path) -> Journal | None:
    """The journal for a file in a folder that `begin` gave for a job; None for any other."""
    journal = Journal(data.parent.parent)
    return journal if data.parent.name == FOLDER and journal.path.is_file() else None


def can_continue(hidden: Path) -> bool:
    """Whether something was noted in `hidden`, and less than a week ago."""
    journal = Journal(hidden)
    return bool(journal.notes()) and time.time() - journal.path.stat().st_mtime < KEPT


def end(hidden: Path) -> None:
    """Nothing is left to continue: the folder is whole."""
    Journal(hidden).path.unlink(missing_ok=True)


def _empty(folder: Path, but: Collection[str] = ()) -> None:
    for path in folder.iterdir():
        if path.name in but:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
