"""The line protocol between the benchmark and one engine in a process of its own; knows nothing of models.

The engine prints one JSON line when it is ready, then one for every request line:

    decode N            {"seconds": [N floats]}   from the initial state, one call a token
    prefill N REPEATS   {"seconds": [REPEATS floats]}   each from the initial state, logits for the last token only
    logits HOW N PATH   {"written": true}   HOW is step or prefill; the last logits, raw float32, in PATH

The tokens are always token(0), token(1), ... An engine that cannot answers {"error": "why"}, or ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtimes.contract import Array
from runtimes.errors import CheckFailed

MODES = ("step", "prefill")


def token(index: int, vocab: int) -> int:
    """The token at a position of the one sequence every engine is fed; consecutive rows of a table are far apart."""
    return (100 + 977 * index) % vocab


def tokens(count: int, vocab: int) -> list[int]:
    """The first tokens of that sequence."""
    return [token(index, vocab) for index in range(count)]


class Model(Protocol):
    """What a Python engine supplies; seconds are wall time of the engine's own call."""

    def decode(self, count: int) -> list[float]: ...
    def prefill(self, count: int) -> float: ...
    def logits(self) -> Array: ...


def serve(model: Model, ready: Mapping[str, object]) -> None:
    """Announce the model, then answer standard input until it ends."""
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        print(json.dumps(respond(model, line)), flush=True)


def respond(model: Model, line: str) -> dict[str, object]:
    """The answer to one request."""
    match line.split(maxsplit=3):
        case ["decode", count]:
            return {"seconds": model.decode(int(count))}
        case ["prefill", count, repeats]:
            return {"seconds": [model.prefill(int(count)) for _ in range(int(repeats))]}
        case ["logits", mode, count, path] if mode in MODES:
            _ = model.decode(int(count)) if mode == "step" else model.prefill(int(count))
            model.logits().astype(np.float32).tofile(path.strip())
            return {"written": True}
    return {"error": "not understood"}


class Engine:
    """A running engine; `ready` is what it announced. Raises CheckFailed in one sentence whenever it stops."""

    def __init__(self, name: str, command: Sequence[str | Path], *, env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._log = log
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=dict(env),
            )
        self.ready = self._read()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: str) -> dict[str, Any]:
        """One request, one answer."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # the answer, or its absence, tells
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
        return self._read()

    def seconds(self, request: str) -> list[float]:
        """The answer to decode or prefill."""
        return [float(value) for value in self.ask(request)["seconds"]]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        if line := self._process.stdout.readline():
            return parse(line, self.name)
        raise stopped(self.name, self._process.wait(), self._log)


def parse(line: str, name: str) -> dict[str, Any]:
    """One answer line; raises CheckFailed where it is an error or no answer."""
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise CheckFailed(f"{name} answered {line.strip()[:80]!r}, which is not a JSON object")
    if "error" in answer:
        raise CheckFailed(f"{name} refused: {answer['error']}")
    return answer


def stopped(name: str, code: int, log: Path) -> CheckFailed:
    """Why a process ended, in one sentence: the signal, or the last line it wrote."""
    if code == -signal.SIGILL:
        return CheckFailed(
            f"{name} stopped at an instruction this machine refuses (SIGILL)",
            hint="gcc 12 builds of llama.cpp do this on Intel machines with AMX: try --no-amx",
        )
    last = next(reversed(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()), "it said nothing")
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return CheckFailed(f"{name} {how}: {last.strip()}", hint=f"all it wrote is in {log}")


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without settings of thread pools, plus an engine's own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    return kept | dict(own)


def resident(pid: int) -> dict[str, int]:
    """Resident bytes of a process: the most ever, all, private to it, mapped from files; empty where there is no /proc.

    Not ru_maxrss, which a process inherits: it would be ours from before the engine was started.
    """
    status, rollup = Path(f"/proc/{pid}/status"), Path(f"/proc/{pid}/smaps_rollup")
    if not rollup.exists():
        return {}
    text = status.read_text(encoding="utf-8") + rollup.read_text(encoding="utf-8")
    found = {name: int(size) << 10 for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return {
        "peak_rss_bytes": found["VmHWM"],
        "rss_bytes": found["Rss"],
        "anonymous_bytes": found["Anonymous"],
        "file_bytes": found["Rss"] - found["Anonymous"],
    }
