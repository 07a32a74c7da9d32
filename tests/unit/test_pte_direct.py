"""The library of pte:cpu-direct: built once for one executorch, and told of where it cannot be built."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtimes import compiling
from runtimes.backends import pte
from runtimes.errors import Missing
from runtimes.pte.runner import build

compiled = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))


@compiled
def test_the_library_is_built_once() -> None:
    path = build.library()
    made = path.stat().st_mtime_ns
    assert build.library() == path
    assert path.stat().st_mtime_ns == made


@compiled
def test_another_release_of_executorch_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.library()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "version", lambda name: "0.0")
    monkeypatch.setattr(compiling.Library, "_build", lambda self, compiler, path: None)
    assert build.library().parent.name != path.parent.name


@compiled
def test_a_header_that_another_one_includes_makes_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling.Library, "_build", lambda self, compiler, path: None)
    source, near, far = tmp_path / "one" / "a.cpp", tmp_path / "one" / "near.h", tmp_path / "two" / "far.h"
    for file, content in {source: '#include "near.h"\n', near: '#include "../two/far.h"\n', far: "int a;\n"}.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
    library = compiling.Library("a test", source, (), instead="nothing")
    before = library.built()
    far.write_text("int b;\n")
    assert library.built() != before


@compiled
def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("RWKV_EXPORT_CXX", f"{' '.join(compiling._compiler())} -include /nowhere.h")
    with pytest.raises(Missing, match=r"cannot compile the ExecuTorch runner: .*nowhere\.h"):
        build.library()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_without_a_compiler_the_place_is_missing_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in compiling.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", "")
    assert "no C++ compiler" in str(pte.missing("cpu-direct"))
    assert pte.missing("cpu") is None
    with pytest.raises(Missing, match=r"no C\+\+ compiler") as raised:
        build.library()
    assert "pte:cpu" in str(raised.value.hint)


def test_a_wheel_without_headers_or_libraries_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "folder", lambda: tmp_path)
    assert pte.missing("cpu-direct") == "this executorch carries no headers to build against"
    (tmp_path / "include" / "executorch").mkdir(parents=True)
    assert pte.missing("cpu-direct") == "this executorch carries no libexecutorch.so to build against"
