"""Runs tests in the tree it is started in, each time in a fork that has other people's packages imported already.

run.py starts it. A line of JSON on stdin names tests; one on stdout says with what status pytest ended, and the seconds
of CPU time it took with all it started. What it printed is in the file `printed`. A fork imports our modules anew.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = ("exporter", "runtimes", "validation", "rwkv_export", "tests")
SLOW_TO_IMPORT = ("torch", "scipy.stats", "onnx", "onnxscript", "onnxruntime", "hypothesis")
PRINTED = "printed"
LIMIT = 600
"""Seconds of CPU time after which tests that do not end are ended."""


def run(tree: Path, names: Sequence[str]) -> int:
    """Pytest's exit status: 0 where all passed, 1 where one failed; it stops there."""
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    for stream, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        os.dup2(os.open(tree / PRINTED if stream else os.devnull, mode | os.O_CREAT | os.O_APPEND), stream)
    for name in PACKAGES:
        found = find_spec(name)
        if found is None or found.origin != str(tree / name / "__init__.py"):
            print(f"{name} is imported from {found and found.origin}, not from {tree}")
            return pytest.ExitCode.INTERNAL_ERROR
    return pytest.main(["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={tree}.temporary", *names])


def main() -> None:
    """One fork after another, until stdin ends."""
    tree = Path.cwd()
    for name in SLOW_TO_IMPORT:
        importlib.import_module(name)
    for line in sys.stdin:
        (tree / PRINTED).write_text("")
        child = os.fork()
        if not child:
            status = 70
            try:
                status = int(run(tree, json.loads(line)))
            finally:
                sys.stdout.flush()
                os._exit(status)
        _, status, used = os.wait4(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime]), flush=True)


if __name__ == "__main__":
    main()
