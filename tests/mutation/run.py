"""Plants every fault in a copy of the tree and runs the tests that must notice; exit code 1: one was not noticed.

python -m tests.mutation.run
python -m tests.mutation.run --only v7-bonus-within-the-norm --only nan-on-text-passes
python -m tests.mutation.run --jobs 2 --json mutation.json
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from py_compile import PycInvalidationMode
from queue import SimpleQueue
from typing import NamedTuple

from tests.mutation import plan
from tests.mutation.one import PRINTED
from tests.mutation.plan import ROOT, Fault

NOTICED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
PASSED, FAILED = 0, 1
"""Exit statuses of pytest; others mean that it could not run the tests."""


class Ran(NamedTuple):
    """Pytest's exit status, what it printed, and the CPU time it took with all it started."""

    status: int
    printed: str
    cpu_seconds: float


class Copy:
    """The tree as git sees it, in another folder, and a process that runs its tests."""

    def __init__(self, folder: Path) -> None:
        asked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(asked, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        for name in filter(lambda name: (ROOT / name).is_file(), names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        compileall.compile_dir(folder, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
        self.folder = folder
        env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "tests.mutation.one"]
        self._process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def test(self, names: Sequence[str]) -> Ran:
        """Run tests until one fails."""
        asked, told = self._process.stdin, self._process.stdout
        assert asked and told
        print(json.dumps(list(names)), file=asked, flush=True)
        status, seconds = json.loads(told.readline())
        return Ran(status, (self.folder / PRINTED).read_text(errors="replace"), seconds)

    def plant(self, fault: Fault) -> dict[str, object]:
        """What became of one fault; the copy is as before afterwards."""
        path = self.folder / fault.file
        sound = path.read_text(encoding="utf-8")
        try:
            path.write_text(fault.planted(sound), encoding="utf-8")
            ran = self.test(fault.tests)
        except ValueError as error:
            return {"fault": fault.name, "became": "no longer applies", "by": str(error), "cpu_seconds": 0}
        finally:
            path.write_text(sound, encoding="utf-8")
        became = {PASSED: "survived", FAILED: "killed"}.get(ran.status, "kept the tests from running")
        found = NOTICED.search(ran.printed) if ran.status == FAILED else None
        by = "" if ran.status == PASSED else found[1] if found else ran.printed[-2000:]
        return {"fault": fault.name, "became": became, "by": by, "cpu_seconds": round(ran.cpu_seconds, 1)}

    def end(self) -> None:
        """Let the process end."""
        self._process.communicate()


def require_sound(copy: Copy, faults: Sequence[Fault]) -> float:
    """CPU seconds of all named tests without a fault; leaves where they do not pass."""
    ran = copy.test(list(dict.fromkeys(name for fault in faults for name in fault.tests)))
    if ran.status != PASSED:
        raise SystemExit(f"{ran.printed}\nthe tests do not pass without a fault")
    return ran.cpu_seconds


def run(faults: Sequence[Fault], copies: Sequence[Copy], report: Path | None) -> list[dict[str, object]]:
    """Prints a line a fault; the report is written as they come."""
    free: SimpleQueue[Copy] = SimpleQueue()
    for copy in copies:
        free.put(copy)

    def in_turn(fault: Fault) -> dict[str, object]:
        copy = free.get()
        try:
            return copy.plant(fault)
        finally:
            free.put(copy)

    done: list[dict[str, object]] = []
    with ThreadPoolExecutor(len(copies)) as pool:
        for turn in as_completed([pool.submit(in_turn, fault) for fault in faults]):
            done.append(turn.result())
            print(" ".join(f"{key}={value}" for key, value in done[-1].items()), flush=True)
            if report:
                report.write_text(json.dumps({"faults": done}, indent=1) + "\n", encoding="utf-8")
    return done


def main() -> int:
    """0: every fault was noticed."""
    faults = plan.read()
    names = [fault.name for fault in faults]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="repeatable")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time, each in a copy of its own")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    wanted = [fault for fault in faults if not asked.only or fault.name in asked.only]
    with tempfile.TemporaryDirectory(prefix="rwkv-export-mutation-") as folder:
        copies = [Copy(Path(folder).resolve() / str(job)) for job in range(asked.jobs)]
        try:
            sound = require_sound(copies[0], wanted)
            print(f"the tests of {len(wanted)} faults pass without one, in {sound:.0f} s of CPU time", flush=True)
            done = run(wanted, copies, asked.json)
        finally:
            for copy in copies:
                copy.end()
    killed = [result for result in done if result["became"] == "killed"]
    spent = sound + sum(float(str(result["cpu_seconds"])) for result in done)
    print(f"{len(killed)} of {len(done)} faults were noticed, in {spent:.0f} s of CPU time")
    return int(len(killed) < len(done))


if __name__ == "__main__":
    sys.exit(main())
