"""Ends a write at chosen moments, each in a forked child, and prints as JSON what that left; test_atomic.py runs it.

A moment is an audit event of Python (a file opened, a folder made, renamed or removed, a C function looked up) since
the write first touched the folder it writes to.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from exporter import atomic, streaming
from exporter.progress import silent
from exporter.streaming import Piece

Work = Callable[[], None]


def few_files(destination: Path, text: str) -> Work:
    def work() -> None:
        with atomic.replacing(destination) as folder:
            (folder / "sub").mkdir()
            for name in ("a", "sub/b", "sub/c"):
                (folder / name).write_text(text)

    return work


class Streamed:
    """An export whose data file is continued; counts the pieces that were read."""

    def __init__(self, destination: Path) -> None:
        streaming.WORTH_IT = 0
        self.read = 0
        self._destination = destination
        self._pieces = [Piece(f"w{i}", i << 10, 1 << 10, lambda i=i: self._content(i)) for i in range(4)]

    def _content(self, number: int) -> memoryview:
        self.read += 1
        return memoryview(bytes([number]) * (1 << 10))

    def __call__(self) -> None:
        self.read = 0
        with atomic.replacing(self._destination, {"precision": "fp16"}) as folder:
            streaming.write(folder / "data", self._pieces, silent)
            (folder / "graph").write_text("newer")


def artifact(destination: Path, checkpoint: str) -> Work:
    import exporter

    def work() -> None:
        exporter.export(checkpoint, targets=["torch"], out=destination.parent)

    exporter.open_model()  # imports torch once, before the forks
    return work


def contents(folder: Path) -> dict[str, str] | None:
    """Path -> hash; None where there is no folder."""
    if not folder.exists():
        return None
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def forked(
    work: Work, place: str, end: int | None, number: signal.Signals = signal.SIGKILL, *, near: bool = False
) -> int:
    """Run `work` in a child that signals itself at moment `end`; returns how many moments there were, -1 if it died.

    near: only what itself touches `place` is a moment
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        moments = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal moments
            touched = any(isinstance(item, str | os.PathLike) and str(item).startswith(place) for item in arguments)
            if touched or (moments and not near):
                moments += 1
            if moments == end and (touched or not near):
                os.kill(os.getpid(), number)

        sys.addaudithook(hook)
        with contextlib.suppress(KeyboardInterrupt):
            run(work)
            os.write(write, str(moments).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        moments = int(said.read() or -1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0
    return moments


def run(work: Work) -> None:
    """An error of the work itself must not pass for its end."""
    try:
        work()
    except Exception:
        traceback.print_exc()
        os._exit(1)


def main() -> None:
    # A shell starts background jobs with SIGINT ignored, and Python then leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser()
    parser.add_argument("destination", type=Path)
    parser.add_argument("--older", action="store_true")
    parser.add_argument("--no-exchange", action="store_true")
    parser.add_argument("--checkpoint")
    parser.add_argument("--streamed", action="store_true")
    parser.add_argument("--signal", default="SIGKILL")
    parser.add_argument("--moments", type=int, help="that many at random, instead of all")
    asked = parser.parse_args()
    destination: Path = asked.destination
    destination.parent.mkdir()
    if asked.no_exchange:
        atomic._exchange = lambda one, other: False
    newer = artifact(destination, asked.checkpoint) if asked.checkpoint else few_files(destination, "newer")
    older, sweep = few_files(destination, "older"), few_files(destination.with_name("another"), "")
    if asked.streamed:
        newer = sweep = streamed = Streamed(destination)

    def before() -> None:
        shutil.rmtree(destination, ignore_errors=True)
        if asked.older:
            older()

    before()
    total = forked(newer, str(destination.parent), None)
    complete = contents(destination)
    moments = range(1, total + 1)
    for end in sorted(random.sample(moments, asked.moments)) if asked.moments else moments:
        before()
        was = contents(destination)
        killed = forked(newer, str(destination.parent), end, signal.Signals[asked.signal]) == -1
        left, unswept = contents(destination), hidden(destination.parent)
        sweep()
        said = {"killed": killed, "was": was, "left": left, "complete": complete, "unswept": unswept}
        after = {"after the sweep": contents(destination), "beside": hidden(destination.parent)}
        if asked.streamed:
            after["read again"] = streamed.read
        print(json.dumps({"end": end, **said, **after}), flush=True)


if __name__ == "__main__":
    main()
