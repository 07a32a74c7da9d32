"""The page in real browsers, which compute: wasm, WebGPU on a software adapter, WebNN; and a tab that is closed."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from exporter import export
from tests.requirements import require
from tests.web.conftest import Serve, Served
from validation import latency, outcome, parity
from validation.outcome import Outcome, Results
from validation.serve import ort_web

pytestmark = pytest.mark.slow

ORT_WEB = ort_web.cache()  # the user's, looked up before the tests get a cache of their own
FIND = ort_web.find
WEBNN = os.environ.get("RWKV_EXPORT_WEBNN_BROWSER", "")
ARGUMENTS = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
WITH_WEBNN = [
    "--no-sandbox",
    "--disable-gpu",
    "--enable-features=WebMachineLearningNeuralNetwork",
    "--enable-experimental-web-platform-features",
]
SECONDS = 240
INSECURE = "phone.test"


def missing(browser: str | None) -> str | None:
    if not browser or not Path(browser).is_file():
        return f"there is no browser {browser!r}"
    if not ORT_WEB.is_dir():
        return f"onnxruntime-web is not in {ORT_WEB}, where `rwkv-export serve` puts it"
    return None


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    require("browser", None if find_spec("playwright") else "the Python package playwright is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium


@pytest.fixture(scope="module")
def chromium(engine: Any) -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    require("browser", missing(path))
    browser = engine.launch(executable_path=path, args=[*ARGUMENTS, f"--host-resolver-rules=MAP {INSECURE} 127.0.0.1"])
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def webnn(engine: Any) -> Iterator[Any]:
    require("webnn", missing(WEBNN) if WEBNN else "RWKV_EXPORT_WEBNN_BROWSER names no browser that has WebNN")
    browser = engine.launch(executable_path=WEBNN, args=WITH_WEBNN)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def austen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (made,) = export(targets=["onnx-cpu"], options={"graphs": "each"}, out=tmp_path_factory.mktemp("austen"))
    return made


@pytest.fixture
def shown(serve: Serve, austen: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serves the bundled model with what browsers need, measured as briefly as can be."""
    monkeypatch.setattr(ort_web, "find", lambda folder, progress: FIND(ORT_WEB, progress))
    monkeypatch.setattr(latency, "MOST_SECONDS", 0.0)  # no warm-up
    monkeypatch.setattr(latency, "REPETITIONS", 1)
    monkeypatch.setattr(parity, "SINGLES", 4)
    chosen = {"artifacts": [austen], "steps": 4, "prompt": 2, "tokens": 4}
    return lambda *on, **changes: serve(*on, **{**chosen, **changes})


def visited(browser: Any, served: Served, folder: Path, *, url: str = "") -> tuple[Results, str]:
    """The results of a visit, and the text that the person sees at its end."""
    with closing(browser.new_context(ignore_https_errors=True)) as context:
        page = context.new_page()
        page.goto(url or served.url)
        page.wait_for_selector("html[data-state=done]", timeout=1000 * SECONDS)
        text = page.inner_text("main")
    (path,) = folder.glob("*.json")
    return outcome.read(path), text


def test_wasm_passes_with_one_thread_and_with_two_over_https(chromium: Any, shown: Serve, tmp_path: Path) -> None:
    served = shown("web:wasm-1", "web:wasm-2", secure=True)
    results, text = visited(chromium, served, tmp_path / "out")
    assert [row.outcome for row in (*results.parity, *results.latency)] == [Outcome.PASS] * 4
    assert [row.identity.observed for row in results.parity] == ["web:wasm-1", "web:wasm-2"]
    for row in results.parity:
        assert set(row.identity.nodes) == {"CPUExecutionProvider"}
        assert row.free and row.free.worst > 0
    assert all(row.decode and len(row.decode.seconds) == 4 for row in results.latency)
    assert "The model runs right in 2 places" in text
    assert text.count("tokens a second") == 4
    assert results.machine.cores == os.cpu_count()
    assert any(name.startswith("Chrom") for name in results.machine.packages)


def test_webgpu_passes_with_every_node_on_it_and_a_software_adapter_is_called_one(
    chromium: Any, shown: Serve, tmp_path: Path
) -> None:
    results, text = visited(chromium, shown("web:webgpu"), tmp_path / "out")
    (row,), (timed,) = results.parity, results.latency
    assert (row.outcome, row.identity.observed) == (Outcome.PASS, "web:webgpu"), row.reasons
    assert set(row.identity.nodes) == {"WebGpuExecutionProvider"}
    assert row.identity.evidence == "emulated"  # SwiftShader computes on the CPU: no latency of a GPU
    assert any("emulator" in warning for warning in timed.warnings)
    assert "swiftshader" in results.machine.cpu
    assert "matches" in text


def test_webnn_passes_where_the_browser_says_it_ran(webnn: Any, shown: Serve, tmp_path: Path) -> None:
    results, text = visited(webnn, shown("web:webnn-cpu", "web:webnn-npu"), tmp_path / "out")
    asked_cpu, asked_npu = results.parity
    assert (asked_cpu.outcome, asked_cpu.identity.observed) == (Outcome.PASS, "web:webnn-cpu"), asked_cpu.reasons
    assert asked_npu.outcome is Outcome.FALLBACK  # right, but on the processor, whatever was asked for
    assert asked_npu.identity.observed == "web:webnn-cpu"
    assert "ran elsewhere" in text


def test_a_page_without_https_says_what_it_lacks(chromium: Any, shown: Serve, tmp_path: Path) -> None:
    served = shown("web:wasm-2", "web:webgpu", "web:webnn-npu")
    insecure = served.url.replace("127.0.0.1", INSECURE)
    results, text = visited(chromium, served, tmp_path / "out", url=insecure)
    assert [row.outcome for row in results.parity] == [Outcome.MISSING] * 3
    assert all("HTTPS" in row.reasons[0] for row in results.parity)
    assert "Nothing could run here" in text


def test_a_tab_that_is_closed_leaves_what_it_measured(chromium: Any, shown: Serve, tmp_path: Path) -> None:
    served = shown("web:wasm-1", tokens=100_000)
    page = chromium.new_page()
    page.goto(served.url)
    (visit,) = _until(lambda: list(served.site.visits.values()))
    _until(lambda: re.match("timing", visit.cells[0].said[0]) and visit.cells[0].said[1] > 20)
    page.close(run_before_unload=True)
    _until(visit.done.is_set)
    (path,) = (tmp_path / "out").glob("*.json")
    (timed,) = outcome.read(path).latency
    assert timed.outcome is Outcome.ERROR
    assert timed.decode and len(timed.decode.seconds) >= 8
    assert timed.first_token_s > 0


def _until(found: Any) -> Any:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        if got := found():
            return got
        time.sleep(0.05)
    raise AssertionError("waited in vain")
