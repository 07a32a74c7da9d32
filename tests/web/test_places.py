"""What a browser lacks, what is too large for it, where it really ran; onnxruntime-web found, fetched and refused."""

from __future__ import annotations

import hashlib
import re
import tarfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import segno

from exporter.progress import silent
from runtimes import manifest
from runtimes.contract import Artifact
from runtimes.errors import BadArtifact, Missing, RwkvExportError, WrongCall
from rwkv_export.main import run
from tests.web.conftest import Serve
from tests.web.pages import DEVICE, FakePage
from validation.serve import device, ort_web, places, prepare, server
from validation.serve.device import GIB, Adapter
from validation.serve.places import Demands
from validation.serve.wire import Opened

GPU = Adapter("arm", "valhall", "", software=False, half=False, max_buffer=256 << 20)
PHONE = replace(device.read(DEVICE), cores=8, adapter=GPU, webnn={"cpu": "", "gpu": "no backend", "npu": "no backend"})
SMALL = Demands({"decode.onnx": 1000, "model.onnx.data": 1 << 20}, tensor=1 << 19, free=False, half=False)


def place(name: str) -> places.Place:
    return places.parse(name)


def test_what_is_tried_unasked_is_all_there_may_be() -> None:
    rest = ["web:webgpu", "web:webnn-cpu", "web:webnn-gpu", "web:webnn-npu"]
    assert [each.name for each in places.usual(PHONE)] == ["web:wasm-1", "web:wasm-4", *rest]
    assert [each.name for each in places.usual(replace(PHONE, cores=1))] == ["web:wasm-1", *rest]


@pytest.mark.parametrize("name", ["web:wasm", "web:wasm-0", "web:wasm-100", "web:webnn-tpu", "ort:cpu", "web:webgpu-1"])
def test_a_place_that_browsers_do_not_have_is_refused(name: str) -> None:
    with pytest.raises(WrongCall, match="a browser has no place"):
        places.parse(name)


@pytest.mark.parametrize(
    ("name", "changes", "lacks"),
    [
        ("web:wasm-1", {"isolated": False}, None),
        ("web:wasm-4", {"isolated": False}, "may not share memory between threads"),
        ("web:webgpu", {}, None),
        ("web:webgpu", {"adapter": None, "no_adapter": "it has no WebGPU"}, "no WebGPU adapter: it has no WebGPU"),
        ("web:webnn-cpu", {}, None),
        ("web:webnn-npu", {}, "no backend"),
        ("web:webnn-npu", {"webnn": {}}, "this browser has no WebNN"),
    ],
)
def test_what_a_device_lacks_is_said(name: str, changes: dict[str, Any], lacks: str | None) -> None:
    found = places.lacking(place(name), replace(PHONE, **changes))
    assert (found is None) if lacks is None else (found is not None and lacks in found)


@pytest.mark.parametrize(
    ("name", "changes", "gpu", "reason"),
    [
        ("web:webgpu", {}, {}, None),
        ("web:wasm-1", {"files": {"model.onnx.data": 3 * GIB}}, {}, "a file of 3.00 GiB is more than the 2.00 GiB"),
        (
            "web:wasm-1",
            {"files": {"a": GIB, "b": GIB, "c": 3 * GIB // 2, "d": GIB}},
            {},
            "takes 9.00 GiB .* tells of 8 GiB",
        ),
        ("web:webgpu", {"tensor": 257 << 20}, {}, "the largest weight has 0.25 GiB, a buffer of this GPU at most 0.25"),
        ("web:wasm-1", {"tensor": 257 << 20}, {}, None),
        ("web:webgpu", {"half": True}, {}, "float16, which this GPU's adapter lacks"),
        ("web:webgpu", {"half": True}, {"half": True}, None),
        ("web:wasm-1", {"free": True}, {}, None),
        ("web:webnn-cpu", {"free": True}, {}, "webnn wants fixed shapes"),
    ],
)
def test_what_is_too_large_is_refused_with_the_limit(
    name: str, changes: dict[str, Any], gpu: dict[str, Any], reason: str | None
) -> None:
    phone = replace(PHONE, adapter=replace(GPU, **gpu))
    found = places.refused(place(name), phone, replace(SMALL, **changes))
    assert (found is None) if reason is None else (found is not None and re.search(reason, found))


def test_a_browser_that_does_not_tell_its_memory_is_not_refused_for_it() -> None:
    large = replace(SMALL, files={"a": 2 * GIB - (8 << 20), "b": 2 * GIB - (8 << 20), "c": GIB})
    assert places.refused(place("web:wasm-1"), PHONE, large)
    assert places.refused(place("web:wasm-1"), replace(PHONE, memory=0), large) is None


@pytest.mark.parametrize(
    ("name", "opened", "observed"),
    [
        ("web:wasm-4", Opened(4, {"CPUExecutionProvider": 9}, ()), "web:wasm-4"),
        ("web:wasm-4", Opened(1, {"CPUExecutionProvider": 9}, ()), "web:wasm-1"),
        ("web:webgpu", Opened(1, {"WebGpuExecutionProvider": 9}, ()), "web:webgpu"),
        (
            "web:webgpu",
            Opened(1, {"WebGpuExecutionProvider": 8, "CPUExecutionProvider": 1}, ()),
            "web:webgpu+CPUExecutionProvider",
        ),
        ("web:webgpu", Opened(1, {"CPUExecutionProvider": 9}, ()), "CPUExecutionProvider"),
        ("web:webgpu", Opened(1, {}, ()), "web:unknown"),
        ("web:webnn-npu", Opened(1, {"WebNNExecutionProvider": 1}, ("npu",)), "web:webnn-npu"),
        ("web:webnn-npu", Opened(1, {"WebNNExecutionProvider": 1}, ("cpu",)), "web:webnn-cpu"),
        ("web:webnn-npu", Opened(1, {"WebNNExecutionProvider": 1}, ("npu", "cpu")), "web:webnn-cpu-npu"),
        ("web:webnn-npu", Opened(1, {"WebNNExecutionProvider": 1}, ()), "web:webnn"),  # asked for, not seen
    ],
)
def test_where_it_ran_is_what_the_page_saw_and_not_what_was_asked(name: str, opened: Opened, observed: str) -> None:
    assert place(name).observed(opened).observed == observed


@pytest.mark.parametrize("name", ["web:webgpu", "web:webnn-gpu", "web:webnn-npu", "web:wasm-1"])
def test_a_software_adapter_is_an_emulator_of_gpus(name: str) -> None:
    computer = replace(PHONE, adapter=replace(GPU, software=True))
    evidence = [places.on(each, place(name)).observed(Opened(1, {}, ())).evidence for each in (PHONE, computer)]
    assert evidence == ["run", "emulated" if name.endswith("gpu") else "run"]


def test_demands_are_read_from_the_graphs(artifact: Path) -> None:
    wanted = places.demands(manifest.open_artifact(artifact))
    assert set(wanted.files) == {"decode.onnx", "prefill4.onnx", "model.onnx.data"}
    stored = onnx.load(artifact / "decode.onnx").graph.initializer
    assert wanted.tensor == max(onnx.numpy_helper.to_array(each).nbytes for each in stored)
    assert (wanted.free, wanted.half) == (False, False)


def test_what_is_no_onnx_graph_is_refused(artifact: Path) -> None:
    opened = manifest.open_artifact(artifact)
    packages = tuple(replace(graph, file="model.mlpackage") for graph in opened.manifest.graphs)
    with pytest.raises(BadArtifact, match=r"holds model.mlpackage; a browser loads .onnx graphs"):
        places.demands(Artifact(artifact, replace(opened.manifest, graphs=packages)))


def test_too_few_steps_and_unknown_places_are_said_before_anybody_comes(serve: Serve) -> None:
    with pytest.raises(WrongCall, match="3 steps are too few"):
        serve(steps=3)
    with pytest.raises(WrongCall, match="a browser has no place 'web:gpu'"):
        serve("web:gpu")
    with pytest.raises(WrongCall, match="no artifact was named"):
        serve(artifacts=[])


def test_a_missing_package_is_named(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "PACKAGES", ("segno", "starlettte"))
    with pytest.raises(Missing, match="package starlettte is not installed") as raised:
        serve()
    assert raised.value.hint == "pip install 'rwkv-export[serve]'"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as npm would give it, of files that are pinned here, and a cache that has none."""
    dist = tmp_path / "package" / "dist"
    dist.mkdir(parents=True)
    for name in ort_web.FILES:
        (dist / name).write_text(f"this is {name}")
    pins = {name: hashlib.sha256((dist / name).read_bytes()).hexdigest() for name in ort_web.FILES}
    monkeypatch.setattr(ort_web, "FILES", pins)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def npm(published: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program called npm, the only one on the path beside the system's own."""
    (published / "bin").mkdir()
    (published / "bin" / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (published / "bin" / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{published / 'bin'}:/usr/bin:/bin")


def packing(published: Path) -> str:
    with tarfile.open(published / "packed", "w:gz") as archive:
        archive.add(published / "package", "package")
    return f'[ "$1 $2" = "pack {ort_web.PACKAGE}" ] && cp {published}/packed "$5/onnxruntime-web.tgz"'


def test_npm_fills_the_cache_once(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm(published, monkeypatch, packing(published))
    found = ort_web.find(None, silent)
    assert {name: path.read_text() for name, path in found.items()} == {name: f"this is {name}" for name in found}
    assert {path.parent for path in found.values()} == {ort_web.cache()}
    (published / "bin" / "npm").unlink()
    assert ort_web.find(None, silent) == found


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'npm error code E404' >&2; exit 1", r"npm cannot get onnxruntime-web@1.30.0: npm error code E404"),
        ("exit 0", r"npm cannot get .*: it says nothing"),
    ],
)
def test_npm_that_fails_is_missing_and_leaves_no_cache(
    published: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    npm(published, monkeypatch, script)
    with pytest.raises(Missing, match=message) as raised:
        ort_web.find(None, silent)
    assert "--ort-web" in (raised.value.hint or "")
    assert not ort_web.cache().exists()


def test_without_npm_the_way_by_hand_is_named(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(published))
    with pytest.raises(Missing, match="npm is not installed") as raised:
        ort_web.find(None, silent)
    assert "--ort-web" in (raised.value.hint or "")
    for folder in (published, published / "package", published / "package" / "dist"):
        assert set(ort_web.find(folder, silent)) == set(ort_web.FILES)


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_file_that_was_altered_is_served_to_nobody(
    published: Path, monkeypatch: pytest.MonkeyPatch, by_hand: bool
) -> None:
    (published / "package" / "dist" / "ort.wasm.min.mjs").write_text("steal()")
    npm(published, monkeypatch, packing(published))
    with pytest.raises(RwkvExportError, match=r"ort.wasm.min.mjs is not that of onnxruntime-web@1.30.0"):
        ort_web.find(published if by_hand else None, silent)
    assert not ort_web.cache().exists()


def test_the_command_prints_an_address_serves_once_and_judges(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ort_web, "find", lambda folder, progress: {})
    shown: list[str] = []

    def scanned(address: str, **_: object) -> Any:
        shown.append(address)
        threading.Thread(target=come, args=(address,)).start()
        return make(address)

    def come(address: str) -> None:
        page = FakePage(address)
        page.come()
        page.run(0)

    make = segno.make
    monkeypatch.setattr(segno, "make", scanned)
    words = [
        "serve",
        str(artifact),
        "--on",
        "web:wasm-1",
        "--host",
        server.LOCAL,
        "--once",
        "-o",
        str(tmp_path / "out"),
    ]
    code = run([*words, "--steps", "4", "--prompt", "2", "--tokens", "2"])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert said.out.splitlines()[0] == shown[0]
    assert shown[0].startswith("https://127.0.0.1:")
    assert "█" in said.err
    assert "Fake 1 Linux came; its results go to" in said.err
    assert "web:wasm-1: pass" in said.err
    assert "The artifact matches its checkpoint" in said.out
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_command_says_what_is_missing_with_its_exit_code(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run(["serve", str(artifact), "--quiet", "-o", str(tmp_path / "out")]) == 3
    assert "npm is not installed" in capsys.readouterr().err
