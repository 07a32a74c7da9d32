"""Packages that a stopped export had finished, so that the same job makes only the others; it converts nothing.

A package is finished once it is noted, whole, in the job's journal (exporter/journal.py); its bytes are read again.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from exporter import journal
from exporter.journal import Note
from exporter.progress import Advance, Progress

PART = 1 << 25  # bytes read at once


def finished(paths: Sequence[Path], progress: Progress) -> bool:
    """Whether files and folders, made together, are all there as noted; else whatever there is of them is removed."""
    notes = journal.of(paths[0])
    noted = {note.file: note for note in notes.notes()} if notes else {}
    if all(path.name in noted and path.exists() for path in paths):
        total = sum(noted[path.name].length for path in paths)
        with progress(f"checking {paths[0].name}", total) as advance:
            if all(_note(path, advance) == noted[path.name] for path in paths):
                return True
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return False


def note(paths: Sequence[Path]) -> None:
    """Note files and folders as finished, if the folder they are in has a journal."""
    notes = journal.of(paths[0])
    if notes:
        for path in paths:
            notes.add(_note(path, lambda count: None))


def _note(path: Path, advance: Advance) -> Note:
    """The length of all files and one checksum over their names and bytes, in the order of their names."""
    length = crc = 0
    for file in _files(path):
        crc = zlib.crc32(file.relative_to(path.parent).as_posix().encode(), crc)
        with file.open("rb") as stream:
            while part := stream.read(PART):
                crc = zlib.crc32(part, crc)
                length += len(part)
                advance(len(part))
    return Note(path.name, "", 0, length, crc)


def _files(path: Path) -> Iterator[Path]:
    yield from sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
