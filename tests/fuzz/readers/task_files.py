"""Files of questions for `quality`: LAMBADA's JSON lines, or MMLU's table; the first byte says which."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from validation import tasks


def seeds(folder: Path) -> Iterator[bytes]:
    yield b"l" + b'{"text": "She said that he was late"}\n{"text": "One more line"}\n'
    yield b"m" + b'What is 1+1?,1,2,3,4,B\n"Which, of these?",a,b,c,d,A\n'


def read(data: bytes, folder: Path) -> None:
    lambada = data[:1] == b"l"
    path = folder / ("questions.jsonl" if lambada else "questions.csv")
    path.write_bytes(data[1:])
    (tasks.read_lambada if lambada else tasks.read_mmlu)(path)
