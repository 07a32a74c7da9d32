"""Makes the environments that runtimes/environments describes, each whole or not at all; it runs nothing in them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from exporter.progress import Progress, silent
from runtimes import environments
from runtimes.environments import MARK, Environment
from runtimes.errors import Missing, WrongCall, did_you_mean
from runtimes.files import write_text_atomically
from runtimes.registry import plugins


def known() -> dict[str, Environment]:
    """Name -> environment: the files of runtimes/environments."""
    return {name: environments.load(name) for name in plugins(environments)}


def find(name: str) -> Environment:
    """The environment called `name`; raises WrongCall with a suggestion."""
    found = known()
    if name not in found:
        raise WrongCall(f"nothing to set up is called {name!r}", hint=did_you_mean(name, found))
    return found[name]


def make(environment: Environment, *, progress: Progress = silent) -> Path:
    """Make it, unless it is there and whole; returns its folder.

    One that is half made, or was made with other pins, is made anew. Raises Missing where this machine or its Python
    does not fit, and where a package cannot be had.
    """
    if reason := environment.unfit():
        raise Missing(reason, hint="nothing was changed")
    try:
        environment.folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(environment.folder.parent / f".{environment.name}.lock"):
            if environment.state() != "ready":
                _make(environment, progress)
    except OSError as error:
        raise Missing(f"cannot write {environment.folder}: {error.strerror}", hint="set XDG_CACHE_HOME") from error
    return environment.folder


def _make(environment: Environment, progress: Progress) -> None:
    folder, pip = environment.folder, [str(environment.python), "-m", "pip", "install", "--disable-pip-version-check"]
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with progress("making a Python environment"):
            _run([sys.executable, "-m", "venv", str(folder)], hint="on Debian: apt install python3-venv")
        steps = ((environment.resolved, ()), (environment.pins, ("--no-deps",)))
        for packages, how in ((packages, how) for packages, how in steps if packages):
            others = f" and {len(packages) - 1} more" if len(packages) > 1 else ""
            with progress(f"installing {packages[0]}{others}"):
                _run([*pip, *how, *packages], hint="pip says more: is its package index within reach?")
        with progress(f"importing {environment.imports[0]}"):
            _run(
                [str(environment.python), "-c", f"import {', '.join(environment.imports)}"],
                hint="these versions do not fit this machine",
            )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    write_text_atomically(folder / MARK, json.dumps({"digest": environment.digest}))


def _run(command: Sequence[str], *, hint: str) -> None:
    """Raises Missing with what the command printed last."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr + done.stdout).strip().splitlines()
        last = next((line for line in said if "ERROR" in line), said[-1] if said else f"status {done.returncode}")
        raise Missing(f"{' '.join(command[1:4])} failed: {last}", hint=hint)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Within the block nobody else makes an environment of this name; whoever comes second waits."""
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
