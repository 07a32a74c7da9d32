"""Ends `bench` at chosen moments, each in a forked child, and prints as JSON what that left and what comes next.

Moments are those of crashes.py, half of them such that the results' own folder is touched. By hand, for many moments:
`PYTHONPATH=. python tests/unit/crashes_bench.py out/tiny.torch.fp32 /tmp/bench --moments 200`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
from pathlib import Path

from crashes import Work, forked

from runtimes.errors import WrongCall
from rwkv_export.main import run
from validation import outcome

CELLS = 2


def bench(artifact: str, results: Path) -> Work:
    arguments = ["bench", *[artifact] * CELLS, "--on", "eager:cpu", "--prompt", "1", "--tokens", "2", "-q", "--json"]

    def work() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            assert run([*arguments, str(results)]) == 0

    return work


def rows(path: Path) -> int | str | None:
    """How many there are; None for no file, and what is wrong with one that cannot be read."""
    if not path.exists():
        return None
    try:
        return len(outcome.read(path).latency)
    except WrongCall as error:
        complete = path.read_bytes().count(b"\n")
        return 0 if path.suffix == outcome.LINES and not complete else error.message


def left(folder: Path) -> dict[str, int | str | None]:
    """Rows of everything in sight; a hidden file is what an atomic write was at."""
    return {path.name: rows(path) for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--moments", type=int, default=12)
    asked = parser.parse_args()
    results = asked.folder / "r.json"
    asked.folder.mkdir(parents=True)
    work = bench(asked.artifact, results)
    work()  # imports everything once, before the forks
    for near in (False, True):
        total = forked(work, str(asked.folder), None, near=near)
        for end in random.choices(range(1, total + 1), k=asked.moments // 2):
            if end % 2:
                results.unlink(missing_ok=True)
            was = rows(results)
            killed = forked(work, str(asked.folder), end, near=near) == -1
            print(json.dumps({"end": end, "killed": killed, "was": was, "left": left(asked.folder)}), flush=True)
    print(json.dumps({"again": forked(work, str(asked.folder), None) > 0, "left": left(asked.folder)}))


if __name__ == "__main__":
    main()
