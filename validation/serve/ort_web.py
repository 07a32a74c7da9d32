"""onnxruntime-web as npm has it, in the user's cache or a folder brought by hand; every file's hash is pinned here."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from exporter.atomic import replacing
from exporter.progress import Progress
from runtimes import manifest
from runtimes.errors import Missing, WrongCall

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
SECONDS = 600
"""After which npm is taken to hang."""

FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
"""What is served, with its SHA-256: plain wasm for CPUs, and the build that has WebGPU and WebNN."""


def find(folder: Path | None, progress: Progress) -> Mapping[str, Path]:
    """The files by name: those of `folder`, else of the cache, which npm fills first; raises Missing or WrongCall.

    folder: the unpacked package, or its dist folder
    """
    if folder is not None:
        places = (folder, folder / "dist", folder / "package" / "dist")
        inside = next((place for place in places if (place / next(iter(FILES))).is_file()), folder)
        return _checked(inside)
    kept = cache()
    if not kept.is_dir():
        with progress(f"getting {PACKAGE} through npm, once"), replacing(kept) as empty:
            _get(empty)
    return _checked(kept)


def cache() -> Path:
    """Where npm's files are kept."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "rwkv-export" / PACKAGE.replace("@", "-")


def _get(into: Path) -> None:
    """Let npm download the package, and keep those of its files that are pinned; raises Missing."""
    by_hand = f"or unpack {PACKAGE.replace('@', '-')}.tgz from npm by hand and name the folder with --ort-web"
    if not shutil.which("npm"):
        raise Missing("npm is not installed, which gets onnxruntime-web", hint=f"apt install npm, {by_hand}")
    with tempfile.TemporaryDirectory() as temporary:
        command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", temporary]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
                cwd=temporary,
                shell=os.name == "nt",
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Missing(f"npm does not run: {error}", hint=f"repair it, {by_hand}") from error
        packed = next(Path(temporary).glob("*.tgz"), None)
        if done.returncode or packed is None:
            said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise Missing(f"npm cannot get {PACKAGE}: {said}", hint=f"connect, {by_hand}")
        _unpack(packed, into)
    _checked(into)


def _unpack(packed: Path, into: Path) -> None:
    with tarfile.open(packed) as archive:
        for name in FILES:
            try:
                source = archive.extractfile(f"package/dist/{name}")
            except KeyError:
                source = None
            if source:
                with source, (into / name).open("wb") as stream:
                    shutil.copyfileobj(source, stream)


def _checked(folder: Path) -> Mapping[str, Path]:
    for name, digest in FILES.items():
        path = folder / name
        if not path.is_file():
            raise WrongCall(f"{folder} has no {name}", hint=f"it must hold the dist folder of {PACKAGE}")
        if manifest.sha256(path) != digest:
            raise WrongCall(f"{path} is not that of {PACKAGE}: its SHA-256 differs", hint=f"remove {folder}, run again")
    return {name: folder / name for name in FILES}
