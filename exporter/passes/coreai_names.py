"""Replaces the names that Core AI's compiler makes up at random, so that the same model gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path

PROGRAM, DIGEST, FACTS = "main.mlirb", "main.hash", "metadata.json"  # the files of an .aimodel

STRINGS = 0  # the number of a bytecode file's section of strings, which others refer to by position
ALIGNED = 0x80  # the bit of a section's number that says that it begins at a multiple of something
BLOB = re.compile(rb"resource_\d+")  # the compiler's hash of a weight, with a seed of every process
SUFFIX = re.compile(rb"_[a-z]{8}$")


def make_reproducible(asset: Path, made_up: Collection[str]) -> None:
    """Rename in place what is named at random in an .aimodel, and take its date away.

    made_up: names of subgraphs, which end in eight letters drawn at random

    The file is read to the sections behind the weights alone, which are where they were.
    """
    random = {name.encode() for name in made_up}
    program = asset / PROGRAM
    with program.open("r+b") as file:
        start, end = _strings(program)
        file.seek(start)
        tail = file.read()
        names = [_steady(name, number, random) for number, name in enumerate(_names(tail[: end - start]))]
        file.seek(start)
        file.truncate()
        file.write(_section(names) + tail[end - start :])
    with program.open("rb") as file:
        (asset / DIGEST).write_bytes(hashlib.file_digest(file, "sha256").digest())
    facts = json.loads((asset / FACTS).read_text(encoding="utf-8"))
    facts.pop("creationDate", None)
    (asset / FACTS).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _steady(name: bytes, number: int, random: Collection[bytes]) -> bytes:
    if name in random:
        return SUFFIX.sub(b"_%d" % number, name)
    return b"resource_%d" % number if BLOB.fullmatch(name) else name


def _strings(path: Path) -> tuple[int, int]:
    """Where the section of strings begins and ends; what follows it is aligned to nothing.

    https://mlir.llvm.org/docs/BytecodeFormat
    """
    with path.open("rb") as file:
        data = file.read(4096)
        at = data.index(0, 4) + 1  # magic, a number of the version, and who wrote it
        size, found = path.stat().st_size, None
        while at < size:
            start = at
            file.seek(at)
            data = file.read(32)
            kind, (length, used) = data[0], _number(data, 1)
            at += used
            if kind & ALIGNED:
                if found:
                    raise ValueError(f"{path} has an aligned section behind its strings")
                alignment, used = _number(data, used)
                at = -(-(start + used) // alignment) * alignment
            at += length
            if kind == STRINGS:
                found = start, at
    if found is None:
        raise ValueError(f"{path} has no section of strings")
    return found


def _names(section: bytes) -> Iterator[bytes]:
    """The strings of a section, whose lengths come first, the last one's before the others'."""
    _, at = _number(section, 1)
    count, at = _number(section, at)
    lengths = []
    for _ in range(count):
        length, at = _number(section, at)
        lengths.append(length)
    for length in reversed(lengths):
        yield section[at : at + length - 1]
        at += length


def _section(names: list[bytes]) -> bytes:
    lengths = b"".join(_varint(len(name) + 1) for name in reversed(names))
    body = _varint(len(names)) + lengths + b"".join(name + b"\0" for name in names)
    return bytes([STRINGS]) + _varint(len(body)) + body


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number whose lowest set bit says how many bytes it takes, and where the next thing begins."""
    if data[at] == 0:
        return int.from_bytes(data[at + 1 : at + 9], "little"), at + 9
    size = (data[at] & -data[at]).bit_length()
    return int.from_bytes(data[at : at + size], "little") >> size, at + size


def _varint(number: int) -> bytes:
    size = max(1, -(-number.bit_length() // 7))
    if size > 8:
        return b"\0" + number.to_bytes(8, "little")
    return (((number << 1) | 1) << (size - 1)).to_bytes(size, "little")
