"""llama.cpp: finds or builds it, compiles the driver, converts and quantises the model; patches nothing."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tarfile
from pathlib import Path

from peers import build
from peers.contract import EXACT, LLAMA, Prepared
from peers.gguf_file import bytes_per_token, write_gguf
from runtimes.errors import Missing, WrongCall

VARIABLE = "LLAMA_CPP_DIR"
PACKAGE = "llama-cpp-python"
RELEASE = "0.3.36"
DRIVER = Path(__file__).with_name("llama_driver.cpp")
CPUINFO = Path("/proc/cpuinfo")

FLAGS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    "GGML_NATIVE": "ON",
    **{f"LLAMA_BUILD_{part}": "OFF" for part in ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER", "APP")},
}
NO_AMX = {
    "GGML_NATIVE": "OFF",
    **{f"GGML_AVX512{part}": "ON" for part in ("", "_VBMI", "_VNNI", "_BF16")},
    **{f"GGML_AMX_{part}": "OFF" for part in ("TILE", "INT8", "BF16")},
}
"""What every processor with AMX has beside it: -march=native would bring AMX back."""

RECORDED = re.compile(
    r"^((?:GGML_(?:NATIVE|AVX\w*|AMX\w*|OPENMP|BLAS|LLAMAFILE|CPU_REPACK)|CMAKE_BUILD_TYPE):.*)$", re.M
)


class Llama:
    """A build of llama.cpp; models are made in `cache`, in GGUF."""

    name = LLAMA

    def __init__(self, folder: Path, cache: Path, *, huge_pages: bool = False) -> None:
        self.build = check_build(folder)
        self.source = source_of(self.build)
        self._cache = cache / "llama"
        self._cache.mkdir(parents=True, exist_ok=True)
        self._huge_pages = huge_pages
        self._driver = self._compile()

    def prepare(self, checkpoint: Path, precision: str) -> Prepared:
        """The GGUF file of a checkpoint, quantised by llama.cpp from its F16 form where that is asked."""
        package = self.source / "gguf-py"
        exact = self._cache / f"{checkpoint.stem}.{EXACT}.gguf"
        if not build.once(exact, checkpoint):
            write_gguf(checkpoint, exact, package)
        path = self._cache / f"{checkpoint.stem}.{precision}.gguf"
        if not build.once(path, exact):
            part = path.with_suffix(".part")
            build.run([self._driver, "quantise", exact, part, precision], self._log("quantise"))
            part.replace(path)
        return Prepared(path, path.stat().st_size, bytes_per_token(path, package))

    def command(self, model: Path, threads: int) -> list[str | Path]:
        return [self._driver, "serve", model, str(threads)]

    def environment(self, threads: int) -> dict[str, str]:
        return {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if self._huge_pages else {}

    def describe(self) -> list[str]:
        """Which release it is, where its folder tells, and how it was built, as CMake remembers."""
        release = [part for part in self.source.parts if part.startswith(PACKAGE.replace("-", "_"))]
        return release + RECORDED.findall(_cached(self.build))

    def _compile(self) -> Path:
        """The driver, named by its text and the build it is linked with."""
        key = hashlib.sha256(DRIVER.read_bytes() + str(self.build).encode()).hexdigest()[:12]
        driver = self._cache / f"driver-{key}"
        library = _library(self.build)
        if build.once(driver, library):
            return driver
        compiler = build.compiler("CXX", "c++", "g++", "clang++") or "c++"
        include = [f"-I{self.source / folder}" for folder in ("include", "ggml/include")]
        link = [f"-L{library.parent}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{library.parent}"]
        build.run([compiler, "-std=c++17", "-O2", *include, DRIVER, *link, "-o", driver], self._log("driver"))
        return driver

    def _log(self, name: str) -> Path:
        return self._cache / "logs" / f"{name}.log"


def find(named: Path | None, cache: Path, *, amx: bool = True) -> Path:
    """The build directory that is named, by argument or environment, or one made in `cache`. Raises Missing."""
    given = named or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if given and not amx:
        raise WrongCall("--no-amx changes the build that is made here, not one that is named", hint="leave one out")
    return given or make(cache / "llama", amx=amx)


def check_build(folder: Path) -> Path:
    """The build directory `folder`, or `folder`/build; raises Missing where there is no optimised shared libllama."""
    found = next((path for path in (folder, folder / "build") if (path / "CMakeCache.txt").exists()), None)
    if not found:
        raise Missing(
            f"{folder} is no build directory of llama.cpp: it has no CMakeCache.txt",
            hint=f"name the directory given to `cmake -B`, with --llama or {VARIABLE}",
        )
    kind = re.search(r"^CMAKE_BUILD_TYPE:\w+=(.*)$", _cached(found), re.M)
    if not kind or kind[1] != "Release":
        raise Missing(
            f"{found} is a build of type {kind[1] if kind else ''!r}, and only a Release build is a fair peer",
            hint="configure with -DCMAKE_BUILD_TYPE=Release",
        )
    _library(found)
    return found.resolve()


def make(cache: Path, *, amx: bool = True) -> Path:
    """Download, unpack, configure and build llama.cpp, each step once; minutes. Raises Missing."""
    made = cache / ("build" if amx else "build-no-amx")
    if made.exists() and any(made.glob("bin/libllama.*")):
        return made
    if not amx and "amx_int8" not in (CPUINFO.read_text(encoding="utf-8") if CPUINFO.exists() else ""):
        raise WrongCall("this processor has no AMX to do without", hint="leave --no-amx out")
    log = cache / "logs" / "build.log"
    source = unpack(download(cache, log), cache)
    build.run(configure(source, made, amx=amx), log)
    build.run(["cmake", "--build", made, "--target", "llama", "--parallel"], log)
    return made


def download(cache: Path, log: Path) -> Path:
    """The source distribution, by pip; its build requirements come as wheels."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "-d", cache]
    archive = cache / f"{PACKAGE.replace('-', '_')}-{RELEASE}.tar.gz"
    if not archive.exists():
        build.run([*pip, f"{PACKAGE}=={RELEASE}"], log)
    return archive


def unpack(archive: Path, cache: Path) -> Path:
    """The source of llama.cpp inside the unpacked archive."""
    folder = cache / archive.name.removesuffix(".tar.gz")
    source = folder / "vendor" / "llama.cpp"
    if not source.exists():
        with tarfile.open(archive) as packed:
            packed.extractall(cache, filter="data")
    if not (source / "CMakeLists.txt").exists():
        raise Missing(f"{archive} holds no vendor/llama.cpp", hint=f"remove {folder} and try again")
    return source


def configure(source: Path, made: Path, *, amx: bool) -> list[str | Path]:
    """The call of CMake: everything this processor has, or everything but AMX."""
    flags = FLAGS if amx else FLAGS | NO_AMX
    return ["cmake", "-S", source, "-B", made, *(f"-D{name}={value}" for name, value in flags.items())]


def _cached(folder: Path) -> str:
    return (folder / "CMakeCache.txt").read_text(encoding="utf-8", errors="replace")


def source_of(folder: Path) -> Path:
    """The source a build directory was configured from; raises Missing where it is gone."""
    found = re.search(r"^CMAKE_HOME_DIRECTORY:INTERNAL=(.*)$", _cached(folder), re.M)
    if not found or not (Path(found[1]) / "include" / "llama.h").exists():
        raise Missing(f"the source that {folder} was built from is gone", hint="build it again")
    return Path(found[1])


def _library(folder: Path) -> Path:
    for name in ("bin", "src", "."):
        for end in ("so", "dylib"):
            if (folder / name / f"libllama.{end}").exists():
                return folder / name / f"libllama.{end}"
    raise Missing(f"{folder} holds no shared libllama", hint="configure with -DBUILD_SHARED_LIBS=ON and build `llama`")
