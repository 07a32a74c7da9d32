"""The shared library around step.h, compiled against what the executorch wheel carries when it is first asked for."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from runtimes.compiling import Library
from runtimes.errors import Missing

SOURCE = Path(__file__).parent / "library.cpp"
KERNELS = ("executorch_kernels_optimized", "executorch_kernels_quantized")
LIBRARIES = ("executorch", "executorch_threadpool", "executorch_backend_xnnpack", *KERNELS)
C10 = "executorch/runtime/core/portable_type/c10"
INSTEAD = "pte:cpu"


def missing() -> str | None:
    """Why the library cannot be built here, or None; it compiles nothing."""
    wheel = folder()
    if wheel is None:
        return "the Python package executorch is not installed"
    needed = {"headers": wheel / "include" / "executorch"}
    needed |= {path.name: path for path in (wheel / "lib" / f"lib{name}.so" for name in LIBRARIES)}
    if absent := [name for name, path in needed.items() if not path.exists()]:
        return f"this executorch carries no {absent[0]} to build against"
    return _library(wheel).missing()


def library() -> Path:
    """The compiled library for this machine and this executorch, built now if it was not yet; raises Missing."""
    wheel = folder()
    if wheel is None:
        raise Missing("the Python package executorch is not installed", hint="pip install executorch")
    return _library(wheel).built()


def folder() -> Path | None:
    """Where the package executorch lies, which is not imported."""
    spec = find_spec("executorch")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def _library(wheel: Path) -> Library:
    include, libraries = wheel / "include", wheel / "lib"
    flags = (
        *("-O2", "-std=c++17", "-w", "-fvisibility=hidden", "-shared", "-fPIC", "-DC10_USING_CUSTOM_GENERATED_MACROS"),
        f'-DEXECUTORCH="{version("executorch")}"',  # another release at the same place is another library
        *("-isystem", str(include), "-isystem", str(include / C10)),
    )
    # Kernels and delegates register themselves when their library is loaded: nothing refers to them by name.
    links = (f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-Wl,--no-as-needed", *(f"-l{name}" for name in LIBRARIES))
    return Library("the ExecuTorch runner", SOURCE, flags, INSTEAD, links)
