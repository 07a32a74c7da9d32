"""Finds Qualcomm's QNN libraries and loads them before ExecuTorch asks for them; it ships and copies none of them."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtimes.errors import Missing
from runtimes.manifest import Manifest
from runtimes.qnn.device import accept_narrow_configs

ROOT = "QNN_SDK_ROOT"
PACKAGE = "onnxruntime_qnn"
HTP, SYSTEM = "libQnnHtp.so", "libQnnSystem.so"
INSTALL = f"set {ROOT} to a Qualcomm AI Engine Direct SDK, or pip install 'rwkv-export[qnn]'"


def missing() -> str | None:
    """Why QNN's compiler and its emulator of the Hexagon processor cannot be used here, or None; it loads nothing."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return f"QNN's compiler and emulator are for Linux on x86-64, this is {platform.system()} {platform.machine()}"
    if find_spec("executorch") is None:
        return "the Python package executorch is not installed"
    folder = libraries()
    if folder is None:
        return f"there are no QNN libraries: {INSTALL}"
    absent = [name for name in (HTP, SYSTEM) if not (folder / name).is_file()]
    return f"{folder} lacks {' and '.join(absent)}: {INSTALL}" if absent else None


def libraries() -> Path | None:
    """Where the libraries are: those of the SDK that QNN_SDK_ROOT names, else those of onnxruntime-qnn."""
    if root := os.environ.get(ROOT):
        return Path(root) / "lib" / "x86_64-linux-clang"
    found = find_spec(PACKAGE)
    return Path(found.origin).parent if found and found.origin else None


def prepare() -> None:
    """Load the libraries, so that ExecuTorch finds them by name whatever LD_LIBRARY_PATH was at the start.

    Where there is no SDK, QNN_SDK_ROOT becomes empty in this process, which tells ExecuTorch not to download one.
    Raises Missing.
    """
    reason, folder = missing(), libraries()
    if reason or not folder:
        raise Missing(str(reason))
    os.environ.setdefault(ROOT, "")
    _load(folder)


def prepare_emulator(manifest: Manifest) -> None:
    """As `prepare`; raises Missing also for methods that share weights, which crash the emulator."""
    if manifest.target.options.get("share") == "yes":
        raise Missing(
            "QNN's emulator cannot run methods that share weights", hint="export with -O share=no to validate"
        )
    prepare()


def version() -> str:
    """Build of the libraries, as "v2.51.0.260607"; after `prepare`."""
    from executorch.backends.qualcomm.python import PyQnnManagerAdaptor

    folder = libraries()
    with muted():
        found: str = PyQnnManagerAdaptor.GetQnnSdkBuildId(str(folder and folder / HTP))
    return found


@cache
def _load(folder: Path) -> Any:
    """What has to live as long as the process. A library that is loaded answers to its name, wherever it came from.

    Once these have compiled something, ONNX Runtime crashes while it is loaded: it comes first.
    """
    with suppress(ImportError):
        importlib.import_module("onnxruntime")
    try:
        with muted():
            system, htp = (ctypes.CDLL(str(folder / name)) for name in (SYSTEM, HTP))
            return system, htp, accept_narrow_configs(htp)
    except OSError as error:
        raise Missing(f"the QNN libraries do not load: {error}", hint="install what they need, as libc++1") from error


@contextmanager
def muted() -> Iterator[None]:
    """Within the block nothing that native code prints reaches the terminal, on standard output neither."""
    streams = (sys.stdout, sys.stderr)
    for stream in streams:
        stream.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in kept:
        os.dup2(nowhere, number)
    os.close(nowhere)
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)
