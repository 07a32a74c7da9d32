"""Fuzzes all readers, or those named, and writes what that was as JSON; exit code 1: one broke.

python -m tests.fuzz.run --minutes 1
python -m tests.fuzz.run --minutes 30 --jobs 2 --target safetensors --json fuzz.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.fuzz import oracle

MEMORY = "/dev/shm"  # noqa: S108  a temporary folder below it, as no disk need see each input
WORK = Path(tempfile.gettempdir()) / "rwkv-export-fuzz"
FLAGS = ("-timeout=300", "-rss_limit_mb=0", "-print_final_stats=1", "-max_len=65536", "-len_control=20")
STATUS = re.compile(r"^#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)/")
BROKEN = re.compile(r"^BROKEN (\w+) (.*)")


def fuzz(name: str, minutes: float, work: Path) -> dict[str, object]:
    """One reader in a process of its own; its corpus stays in `work` for the next time."""
    corpus, broken = work / name / "corpus", work / name / "broken"
    for folder in (corpus, broken):
        folder.mkdir(parents=True, exist_ok=True)
    flags = (*FLAGS, f"-max_total_time={round(60 * minutes)}", f"-artifact_prefix={broken}/")
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        places = ("--folder", folder, "--corpus", str(corpus), "--broken", str(broken))
        command = [sys.executable, "-m", "tests.fuzz.one", name, *places, *flags]
        before = time.monotonic()
        with (work / name / "log").open("w+", errors="replace") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=oracle.ROOT)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = code = os.waitstatus_to_exitcode(status)
            log.seek(0)
            lines = log.read().splitlines()
    states = [found for line in lines if (found := STATUS.match(line))]
    last = states[-1].groups() if states else ("0", "0", "0", "0")
    return {
        "target": name,
        "seconds": round(time.monotonic() - before),
        "cpu_seconds": round(used.ru_utime + used.ru_stime),
        **dict(zip(("executions", "edges", "features", "corpus"), map(int, last), strict=True)),
        "broken": {found[1]: found[2] for line in lines if (found := BROKEN.match(line))},
        "died": "" if code == 0 else f"exit status {code}: {' | '.join(lines[-3:])}",
    }


def main() -> int:
    """Prints a line a reader."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1, help="for each reader, by the clock")
    parser.add_argument("--jobs", type=int, default=1, help="readers at a time")
    parser.add_argument("--target", action="append", choices=oracle.names(), help="repeatable; all where left out")
    parser.add_argument("--work", type=Path, default=WORK, help="where corpora and findings are kept")
    parser.add_argument("--json", type=Path, default=Path("fuzz.json"))
    asked = parser.parse_args()
    done: list[dict[str, object]] = []
    with ThreadPoolExecutor(asked.jobs) as pool:
        for turn in as_completed(
            pool.submit(fuzz, name, asked.minutes, asked.work) for name in asked.target or oracle.names()
        ):
            done.append(turn.result())
            print(" ".join(f"{key}={value}" for key, value in done[-1].items()), flush=True)
            told = {"minutes": asked.minutes, "jobs": asked.jobs, "targets": done}
            asked.json.write_text(json.dumps(told, indent=1) + "\n")
    return int(any(result["broken"] or result["died"] for result in done))


if __name__ == "__main__":
    sys.exit(main())
