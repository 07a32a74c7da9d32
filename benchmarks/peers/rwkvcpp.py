"""rwkv.cpp: a built checkout that is named; converts the model with its own converter and quantiser."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from exporter.checkpoint import open_checkpoint
from peers import build
from peers.contract import EXACT, RWKV_CPP, Prepared
from runtimes.errors import Missing

VARIABLE = "RWKV_CPP_DIR"
CONVERTER = "python/convert_pytorch_to_ggml.py"
HALF = 2  # bytes: its quantiser leaves the embedding and the head in float16

HINT = f"name a built checkout with --rwkv-cpp or {VARIABLE}; benchmarks/README.md says how to build one"


class RwkvCpp:
    """A checkout with build/librwkv; models are made in `cache`, in its own format."""

    name = RWKV_CPP

    def __init__(self, folder: Path, cache: Path, *, huge_pages: bool = False) -> None:
        self.library = find_library(folder)
        self._folder = folder
        self._converter = folder / CONVERTER
        if not self._converter.exists():
            raise Missing(f"{folder} has no {CONVERTER}", hint=HINT)
        self._cache = cache / "rwkv.cpp"
        self._huge_pages = huge_pages

    def prepare(self, checkpoint: Path, precision: str) -> Prepared:
        """The model file of a checkpoint; it is quantised from the F16 form."""
        self._cache.mkdir(parents=True, exist_ok=True)
        log = self._cache / "logs" / "convert.log"
        exact = self._cache / f"{checkpoint.stem}.{EXACT}.bin"
        if not build.once(exact, checkpoint):
            source, part = exact.with_suffix(".pth"), exact.with_suffix(".part")
            write_without_unused(checkpoint, source)
            build.run([sys.executable, self._converter, source, part, "FP16"], log)
            source.unlink()
            part.replace(exact)
        path = self._cache / f"{checkpoint.stem}.{precision}.bin"
        if not build.once(path, exact):
            part = path.with_suffix(".part")
            quantise = [sys.executable, "-m", "peers.rwkvcpp_worker", "quantise", self.library]
            build.run([*quantise, exact, part, precision], log, worker_environment())
            part.replace(path)
        size = path.stat().st_size
        return Prepared(path, size, size - HALF * open_checkpoint(checkpoint)["emb.weight"].numel())

    def command(self, model: Path, threads: int) -> list[str | Path]:
        return [sys.executable, "-m", "peers.rwkvcpp_worker", "serve", self.library, model, str(threads)]

    def environment(self, threads: int) -> dict[str, str]:
        return {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if self._huge_pages else {}

    def describe(self) -> list[str]:
        """The commit of the checkout, if it is one."""
        if not (self._folder / ".git").exists():
            return ["commit unknown"]
        asked = ["git", "-C", str(self._folder), "rev-parse", "HEAD"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False)
        return [f"commit {said.stdout.strip() or 'unknown'}"]


def find(named: Path | None) -> Path:
    """The checkout that is named, by argument or environment. Raises Missing."""
    given = named or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if not given:
        raise Missing("no checkout of rwkv.cpp is named", hint=HINT)
    return given


def find_library(folder: Path) -> Path:
    """librwkv of a built checkout; raises Missing."""
    for path in (folder / "build", folder, folder / "build" / "bin"):
        for end in ("so", "dylib"):
            if (path / f"librwkv.{end}").exists():
                return (path / f"librwkv.{end}").resolve()
    raise Missing(f"{folder} holds no librwkv", hint=HINT)


def write_without_unused(checkpoint: Path, path: Path) -> None:
    """The checkpoint without layer 0's value residual, which is never read, and which rwkv.cpp stumbles over."""
    weights = open_checkpoint(checkpoint)
    unused = [f"blocks.0.att.v{index}" for index in range(3)]
    torch.save({name: weights[name].clone() for name in weights if name not in unused}, path)


def worker_environment() -> dict[str, str]:
    """This process's environment, in which `python -m peers.…` is found."""
    folder = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))}
