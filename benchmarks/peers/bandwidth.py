"""How fast this machine reads memory: bandwidth.c where there is a C compiler, else numpy, which is said."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from peers import build
from peers.contract import Bandwidth
from runtimes.errors import Missing
from validation.bandwidth import read_speed

SOURCE = Path(__file__).with_name("bandwidth.c")
MEGABYTES = 1024  # more than any cache
PASSES = 8
PAGES = ("4K", "2M")


def measure(threads: Sequence[int], cache: Path, megabytes: int = MEGABYTES) -> list[Bandwidth]:
    """The fastest of several passes over `megabytes`, for each number of threads and size of pages."""
    try:
        program = compile_reader(cache)
    except Missing:
        return [Bandwidth(count, "default", read_speed(count, megabytes), "numpy") for count in threads]
    return [
        Bandwidth(count, pages, _read(program, count, megabytes, huge), "C")
        for count in threads
        for huge, pages in enumerate(PAGES)
    ]


def compile_reader(cache: Path) -> Path:
    """The compiled program; raises Missing."""
    program = cache / "bandwidth"
    if build.once(program, SOURCE):
        return program
    compiler = build.compiler("CC", "cc", "gcc", "clang")
    if not compiler:
        raise Missing("there is no C compiler")
    native = [compiler, "-O3", "-march=native", "-pthread", SOURCE, "-o", program]
    build.run(native, cache / "logs" / "bandwidth.log")
    return program


def _read(program: Path, threads: int, megabytes: int, huge: int) -> float:
    words = [str(word) for word in (program, threads, megabytes, huge, PASSES)]
    return float(json.loads(subprocess.run(words, capture_output=True, check=True).stdout)["gb_per_s"])
