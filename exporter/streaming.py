"""Writes a data file piece by piece, one in memory at a time, and continues one that was stopped; knows no format."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from exporter import journal
from exporter.journal import Journal, Note
from exporter.progress import Advance, Progress

WORTH_IT = 1 << 30  # bytes of a file whose pieces are noted; a smaller one is written again from its start
PART = 1 << 25  # bytes read or written at once


@dataclass(frozen=True)
class Piece:
    """`length` bytes that start `offset` bytes into the file; `read` makes them when they are written."""

    name: str
    offset: int
    length: int
    read: Callable[[], memoryview]

    @property
    def end(self) -> int:
        """The offset of what follows."""
        return self.offset + self.length


def write(data: Path, pieces: Sequence[Piece], progress: Progress) -> None:
    """Write pieces, sorted by offset, to `data`; what lies between them is zero.

    A large file in a folder from `exporter.atomic.replacing` continues where the same job had been stopped.
    """
    notes = journal.of(data) if pieces and pieces[-1].end >= WORTH_IT else None
    count = _verified(data, pieces, notes, progress) if notes else 0
    start = pieces[count - 1].end if count else 0
    text = f"continuing {data.name} at {start / pieces[-1].end:.0%}" if start else f"writing {data.name}"
    with (
        progress(text, sum(piece.length for piece in pieces[count:])) as advance,
        data.open("r+b" if start else "wb") as stream,
    ):
        stream.truncate(start)
        for piece in pieces[count:]:
            crc = _copy(piece, stream, advance)
            if notes:
                stream.flush()
                notes.add(Note(data.name, piece.name, piece.offset, piece.length, crc))


def _copy(piece: Piece, stream: BinaryIO, advance: Advance) -> int:
    content, crc = piece.read(), 0
    if len(content) != piece.length:
        raise ValueError(f"{piece.name} has {len(content)} bytes, planned were {piece.length}")
    stream.seek(piece.offset)
    for start in range(0, piece.length, PART):
        part = content[start : start + PART]
        stream.write(part)
        crc = zlib.crc32(part, crc)
        advance(len(part))
    return crc


def _verified(data: Path, pieces: Sequence[Piece], notes: Journal, progress: Progress) -> int:
    """How many pieces, from the first, are in the file as noted; the notes of others are dropped."""
    found = notes.notes()
    own = [note for note in found if note.file == data.name and data.exists()]
    count = _matching(data, pieces[: len(own)], own, progress) if own else 0
    notes.keep([note for note in found if note.file != data.name] + own[:count])
    return count


def _matching(data: Path, pieces: Sequence[Piece], own: Sequence[Note], progress: Progress) -> int:
    """How many pieces agree; their bytes are read again: after a power cut a file may lack what was noted."""
    with progress(f"checking {data.name}", sum(piece.length for piece in pieces)) as advance:
        for count, (note, piece) in enumerate(zip(own, pieces, strict=False)):
            planned = (piece.name, piece.offset, piece.length)
            if (note.name, note.offset, note.length) != planned or _checksum(data, note, advance) != note.crc32:
                return count
    return len(pieces)


def _checksum(data: Path, note: Note, advance: Advance) -> int:
    crc = 0
    with data.open("rb") as stream:
        stream.seek(note.offset)
        for start in range(0, note.length, PART):
            part = stream.read(min(PART, note.length - start))
            crc = zlib.crc32(part, crc)
            advance(len(part))
    return crc
