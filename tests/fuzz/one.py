"""Fuzzes one reader in this process, guided by coverage, until the time is up; run.py starts it and reads its lines.

An input that breaks a reader is kept, once a place, and fuzzing goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["exporter", "runtimes", "validation"]):
    from tests.fuzz import oracle
    from tests.fuzz.oracle import Broken

ROOM = 4 << 30
"""Bytes of address space beyond what the process has before its first input."""


def limit_memory() -> None:
    """Let a huge allocation fail at once."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    """`one.py NAME --folder F --corpus C --broken B -- libFuzzer's own flags`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--broken", type=Path, required=True)
    asked, flags = parser.parse_known_args()
    with atheris.instrument_imports(include=["exporter", "runtimes", "validation"]):
        reader = oracle.load(asked.name)
        for seed in reader.seeds(asked.folder):
            (asked.corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
            reader.judge(seed, asked.folder)  # imports what is imported late
    seen: set[str] = set()
    limit_memory()

    def test(data: bytes) -> None:
        try:
            reader.judge(data, asked.folder)
        except Broken as broken:
            if broken.where not in seen:
                seen.add(broken.where)
                name = hashlib.sha256(data).hexdigest()[:16]
                (asked.broken / name).write_bytes(data)
                print(f"BROKEN {name} {broken}".replace("\n", " "), file=sys.stderr, flush=True)

    atheris.Setup([sys.argv[0], *flags, str(asked.corpus)], test)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
