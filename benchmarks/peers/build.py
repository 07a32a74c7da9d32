"""Runs compilers and converters once, their output in a log; knows none of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtimes.errors import Missing


def run(command: Sequence[object], log: Path, env: Mapping[str, str] | None = None) -> None:
    """Run to the end; raises Missing with the last line of its output, all of which is appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in command]  # paths among them
    if not shutil.which(words[0]):
        raise Missing(f"there is no {words[0]} on this machine", hint="install it, or name a build you have")
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, check=False)
    output = done.stdout.decode("utf-8", "replace")
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"$ {' '.join(words)}\n{output}\n")
    if done.returncode:
        last = next(reversed(output.strip().splitlines()), "it said nothing")
        raise Missing(f"{Path(words[0]).name} failed: {last.strip()}", hint=f"all it wrote is in {log}")


def compiler(variable: str, *names: str) -> str | None:
    """The compiler an environment variable names, or the first of `names` there is."""
    return next((name for name in (os.environ.get(variable), *names) if name and shutil.which(name)), None)


def once(path: Path, *inputs: Path) -> bool:
    """Whether `path` is already there and no older than what it is made from."""
    return path.exists() and all(path.stat().st_mtime >= source.stat().st_mtime for source in inputs)
