"""Plug-in folders: a file that is no plug-in, and two targets of one name, are told by file and never passed over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import runtimes.backends
from exporter import registry as targets
from exporter.contract import Target
from runtimes import registry

TARGET = """
from exporter.contract import Target
TARGETS = (Target("onnx-cpu", "another of this name", "ort", "cpu", {"fp32": "fp32"}),)
missing = refuse = export = None
"""


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    targets._files.cache_clear()
    yield
    targets._files.cache_clear()


def add(package: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, *, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])


def test_a_target_file_without_targets_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(targets.folder, tmp_path, monkeypatch, name="misspelt_target", text="TARGET = ()\n")
    with pytest.raises(TypeError, match=r"misspelt_target\.py has no TARGETS, .*exporter\.targets"):
        targets.targets()


def test_two_targets_of_one_name_are_told_by_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(targets.folder, tmp_path, monkeypatch, name="second_of_one_name", text=TARGET)
    with pytest.raises(TypeError, match=r"onnx\.py and .*second_of_one_name\.py both have a target 'onnx-cpu'"):
        targets.targets()


def test_a_private_helper_is_no_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = set(targets.targets())
    targets._files.cache_clear()
    add(targets.folder, tmp_path, monkeypatch, name="_helper", text="")
    assert set(targets.targets()) == known


@pytest.mark.parametrize(("text", "absent"), [("DEVICES = ('cpu',)\n", "READS"), ("READS = ('.x',)\n", "DEVICES")])
def test_a_runtime_file_that_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, absent: str
) -> None:
    name = f"without_{absent.lower()}"
    add(runtimes.backends, tmp_path, monkeypatch, name=name, text=text)
    with pytest.raises(TypeError, match=rf"{name}\.py has no {absent}"):
        registry.parse(name)


@pytest.mark.parametrize("target", targets.targets().values(), ids=lambda target: target.name)
def test_every_place_that_a_target_names_exists(target: Target) -> None:
    for place in (f"{target.runtime}:{target.device}", *target.also_runs, *filter(None, [target.kernel])):
        runtime, device = registry.parse(place)
        assert f"{runtime}:{device}" == place
