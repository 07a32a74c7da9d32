"""ExecuTorch .pte programs for GPUs of Macs through MLX; compiled here, run by an app that was built with MLX.

The package that pip installs off a Mac has the compiler and the schema of its files, but not the code that its own
generator makes of that schema. It is generated into a temporary copy; nothing that is installed changes.
"""

from __future__ import annotations

import functools
import importlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch

from exporter import pte
from exporter.contract import Job, ModelSpec, Target, Written
from exporter.passes.edge_fold import folded
from exporter.targets.executorch_coreml import SWIFT
from runtimes.errors import Missing
from runtimes.manifest import Precision

TARGETS = (
    Target(
        name="executorch-mlx",
        summary="ExecuTorch with MLX: GPUs of Macs with Apple silicon",
        runtime="pte",
        device="mlx",
        precisions={"fp32": "fp32"},
        prefill=True,
    ),
)

COMPILER = "executorch.backends.mlx"
GENERATED = "serialization/mlx_graph_schema.py"
SOURCES = ("serialization/generate.py", "serialization/schema.fbs", "../../data/bin/flatc")
UNUSED = ("__pycache__", "third-party", "test", "examples", "llm")


def missing() -> str | None:
    """The compiler, and its generated files or what generates them."""
    if not find_spec("executorch"):
        return "the Python package executorch is not installed"
    folder = _installed()
    if folder is None:
        return f"the Python package executorch has no MLX compiler ({COMPILER}): it needs 1.5"
    absent = [name for name in SOURCES if not (folder / name).exists()]
    if absent and not (folder / GENERATED).exists():
        return (
            f"the Python package executorch has neither the generated files of its MLX compiler nor {absent[0]}: "
            "build it from source on a Mac with EXECUTORCH_BUILD_MLX=ON"
        )
    return None


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Every combination works."""


def export(job: Job, folder: Path) -> Written:
    """Lower the step; raises Missing where the compiler's files cannot be generated."""
    compiler = _compiler()
    programs = folded(pte.traced(job, ids=torch.int32))
    edge = pte.lowered(job, programs, lambda: [compiler.MLXPartitioner()])
    usage = {"Step it in Swift": SWIFT.format(delegate="its MLX delegate")}
    return pte.written(job, edge, folder, precision=Precision("float32", "float32"), ids=torch.int32, usage=usage)


def _installed() -> Path | None:
    """The compiler's folder; nothing is imported that needs the generated files."""
    found = find_spec(COMPILER)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


@functools.cache
def _compiler() -> Any:
    """The module, of the package or of the copy that has what the package lacks."""
    folder = _installed()
    if folder and not (folder / GENERATED).exists() and COMPILER not in sys.modules:
        whole = _copy(folder)
        spec = spec_from_file_location(COMPILER, whole / "__init__.py", submodule_search_locations=[str(whole)])
        if spec and spec.loader:
            sys.modules[COMPILER] = module = module_from_spec(spec)
            spec.loader.exec_module(module)
    return importlib.import_module(COMPILER)


def _copy(folder: Path) -> Path:
    """A copy of the compiler's folder, generated files and all, that lives as long as the process."""
    copy = Path(_temporary().name) / "mlx"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*UNUSED))
    (copy / "runtime").mkdir(exist_ok=True)
    for name in ("MLXLoader.h.tmpl", "MLXLoader.cpp.tmpl"):  # the generator also fills C++ files, not used here
        (copy / "serialization" / name).touch()
    command = [sys.executable, str(copy / SOURCES[0]), "--flatc", str((folder / SOURCES[2]).resolve())]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode or not (copy / GENERATED).exists():
        said = ran.stderr.strip().splitlines()[-1:]
        raise Missing(f"the generator of executorch's MLX compiler failed: {' '.join(said)}")
    return copy


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="rwkv-export-mlx-")
