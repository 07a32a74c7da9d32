"""Serving without a browser: a page that steps the graphs in Python, honest, lying, dying; and strangers."""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter import bundled, export
from runtimes.contract import Array
from tests.web.conftest import Serve
from tests.web.pages import DEVICE, FakePage, packed
from validation import compare, exit_code, outcome, validate
from validation.outcome import Outcome, Results
from validation.reports import html
from validation.serve import events, line, visit
from validation.serve.device import GIB

pytestmark = pytest.mark.slow


def written(folder: Path) -> Results:
    (path,) = folder.glob("*.json")
    return outcome.read(path)


def test_an_honest_page_gets_the_verdict_of_validate(serve: Serve, artifact: Path, tmp_path: Path) -> None:
    page = serve().page
    page.come()
    status = page.run(0)
    assert status["done"]
    results = written(tmp_path / "out")
    (parity,), (latency,) = results.parity, results.latency
    (wanted,) = validate([artifact], steps=4).parity
    assert wanted.free and parity.free
    assert (parity.outcome, parity.steps, parity.bound) == (Outcome.PASS, 4, wanted.bound)
    assert parity.free.max_abs == wanted.free.max_abs  # the same graph, the same onnxruntime, the same trace
    assert set(parity.prefill) == set(wanted.prefill) == {"1", "4", "uneven"}
    assert (parity.identity.requested, parity.identity.observed) == ("web:wasm-1", "web:wasm-1")
    assert parity.identity.nodes == {"CPUExecutionProvider": 12}
    assert latency.decode and latency.prefill
    assert (latency.load_s, latency.first_token_s, len(latency.decode.seconds)) == (0.5, 0.001, 10)
    assert (latency.prefill.tokens, latency.prefill.median_ms) == (6, pytest.approx(3))  # calls of 4, 1 and 1 tokens
    assert latency.weight_bytes == sum(path.stat().st_size for path in artifact.glob("*.onnx*"))
    assert results.machine.packages["Fake"] == "1.2.3"
    assert results.machine.memory_bytes == 8 * GIB


def test_what_was_written_is_reported_and_compared(serve: Serve, tmp_path: Path) -> None:
    page = serve("web:wasm-1", "web:webgpu").page
    page.come()
    page.run(0)
    results = written(tmp_path / "out")
    text = html.render([results])
    assert "web:wasm-1" in text
    assert "no WebGPU adapter: it has no WebGPU" in text
    assert {change.verdict for change in compare(results, results)} == {"same"}


def test_quantised_artifacts_also_read_a_text(serve: Serve, tmp_path: Path) -> None:
    made = export(bundled.MODEL.with_name("austen-4-0.4m.pth"), targets=["onnx-cpu"], precision="int8", out=tmp_path)
    page = serve(artifacts=made).page
    page.come()
    page.run(0)
    results = written(tmp_path / "out")
    (quality,), (parity,) = results.quality, results.parity
    assert (quality.outcome, parity.outcome) == (Outcome.PASS, Outcome.PASS)
    assert quality.reading and quality.reading.tokens == 256


def infinite(command: Mapping[str, Any], header: dict[str, Any], parts: list[Array]) -> list[Array]:
    return [np.full_like(part, np.nan) for part in parts] if command["op"] == "run" else parts


def short(command: Mapping[str, Any], header: dict[str, Any], parts: list[Array]) -> list[Array]:
    return [part[..., 1:] for part in parts] if command["op"] == "run" else parts


def stateless(command: Mapping[str, Any], header: dict[str, Any], parts: list[Array]) -> list[Array]:
    return [np.zeros_like(part) for part in parts] if command["op"] == "read" else parts


def off(command: Mapping[str, Any], header: dict[str, Any], parts: list[Array]) -> list[Array]:
    return (
        [part + np.float32(1e-3) * (np.arange(part.size) == 3) for part in parts] if command["op"] == "run" else parts
    )


def wordless(command: Mapping[str, Any], header: dict[str, Any], parts: list[Array]) -> list[Array]:
    if command["op"] == "run":
        header["logits"] = "\x1b[31mbool"
    return parts


def failing(command: Mapping[str, Any], header: dict[str, Any], parts: list[Array]) -> list[Array]:
    if command["op"] == "open":
        header |= {"error": "RangeError: out of\nmemory\x1b[2J"}
    return parts


@pytest.mark.parametrize(
    ("spoil", "outcome_", "reason"),
    [
        (infinite, Outcome.FAIL, r"33 of 33 values of logits are NaN"),
        (off, Outcome.FAIL, r"max\|Δlogit\| 0.001 at step \d exceeds 5e-05 \(fp32\)"),
        (stateless, Outcome.FAIL, r"state blocks.0.att.shift is off by .* \(fp32\)"),
        (short, Outcome.ERROR, r"the page sent 128 bytes of logits, expected 132"),
        (wordless, Outcome.ERROR, r"the page sent logits of type '\S*\[31mbool'"),
        (failing, Outcome.ERROR, r"the browser could not open: RangeError: out of memory\S*\[2J$"),
    ],
)
def test_what_a_page_gets_wrong_is_said(
    serve: Serve, tmp_path: Path, spoil: Any, outcome_: Outcome, reason: str
) -> None:
    page = serve().page
    page.come()
    page.run(0, spoil)
    (parity,) = written(tmp_path / "out").parity
    assert parity.outcome is outcome_
    assert any(re.search(reason, each) for each in parity.reasons), parity.reasons
    assert all(each.isprintable() for each in parity.reasons)  # no text of a page steers a terminal


def test_what_a_page_measured_stays_when_it_closes(serve: Serve, tmp_path: Path) -> None:
    page = serve().page
    page.come()
    page.run(0, commands=17)
    page.post("gone", {"reason": "the page was closed"})
    page.settled(0)
    results = written(tmp_path / "out")
    (parity,), (latency,) = results.parity, results.latency
    assert (parity.outcome, latency.outcome) == (Outcome.ERROR, Outcome.ERROR)
    assert latency.reasons == ("the page was closed",)
    assert latency.load_s == 0.5
    assert latency.prefill and len(latency.prefill.seconds) == 5
    html.render([results])


def test_a_full_disk_looks_like_no_pass(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()
    page = served.page
    page.come()
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(outcome, "write", lambda results, path: (_ for _ in ()).throw(full))
    page.run(0)
    (results,) = served.site.results()
    assert exit_code(results) == 1
    assert any("No space left" in reason for row in results.parity for reason in row.reasons)
    monkeypatch.undo()


def test_a_page_that_falls_silent_is_given_up(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit, "SILENCE", 0.5)
    served = serve("web:wasm-1", "web:wasm-2")
    page = served.page
    page.come()
    page.run(0, commands=3)
    said = list(events.events(served.site, once=True))  # ends, although a place was never begun
    assert "web:wasm-1: error" in said[-1]
    served.site.close()
    first, second = written(tmp_path / "out").parity
    assert first.reasons == (visit.GONE,)
    assert (second.outcome, second.reasons) == (Outcome.MISSING, (f"not begun: {visit.GONE}",))


def test_a_page_that_is_loaded_again_goes_on_with_the_next_place(serve: Serve, tmp_path: Path) -> None:
    page = serve("web:wasm-1", "web:wasm-2").page
    page.come()
    page.run(0, commands=5)
    again = FakePage(f"http://{page.host}:{page.port}{page.base}")
    status = again.come(visit=page.visit)
    assert (again.visit, len(status["cells"])) == (page.visit, 2)
    again.settled(0)
    assert again.run(1)["done"]
    first, second = written(tmp_path / "out").parity
    assert (first.outcome, second.outcome) == (Outcome.ERROR, Outcome.PASS)
    assert first.reasons == ("the page was loaded again",)


def test_an_answer_whose_reply_was_lost_is_taken_once(serve: Serve) -> None:
    page = serve().page
    page.come()
    page.post("begin")
    opening, _ = page.hand(0)
    again, _ = page.hand(0)  # asked for a command without having answered: the same one
    assert opening == again
    opened = {"threads": 1, "nodes": {"CPUExecutionProvider": 1}, "devices": []}
    frame = packed({"seq": opening["seq"], "seconds": [0.1], "opened": opened})
    following, _ = page.hand(0, frame)
    repeated, _ = page.hand(0, frame)
    assert following == repeated
    assert following["op"] == "write"


def test_a_place_is_run_once_and_one_at_a_time(serve: Serve) -> None:
    page = serve("web:wasm-1", "web:wasm-2").page
    page.come()
    page.post("begin", cell=0)
    for cell in (0, 1, 7):
        status, body, _ = page.request("POST", f"api/begin?visit={page.visit}&cell={cell}", b"{}")
        assert status == 409, body
    status, body, _ = page.request("POST", f"api/hand?visit={page.visit}&cell=1")
    assert (status, body) == (409, b"cell 1 was not begun")


def test_a_stranger_gets_nothing(serve: Serve) -> None:
    page = serve().page
    for path in ("/", "/api/visit", f"/{'x' * 22}/", f"{page.base[:-2]}/", "/%2e%2e/etc/passwd", "/%C3%A9/"):
        for method in ("GET", "POST"):
            status, body, headers = page.request(method, path, b"{}")
            assert (status, body) == (404, b"there is nothing here")
            assert headers["cross-origin-embedder-policy"] == "require-corp"


@pytest.mark.parametrize(
    "path",
    ["artifact/0/manifest.json", "artifact/0/README.md", "../etc/passwd", "artifact/0/../../x", "%2e%2e/x", "page"],
)
def test_only_what_the_page_needs_is_served(serve: Serve, path: str) -> None:
    assert serve().page.request("GET", path)[0] == 404


def test_files_come_whole_or_in_part_with_the_headers_that_threads_need(serve: Serve, artifact: Path) -> None:
    page, wanted = serve().page, (artifact / "decode.onnx").read_bytes()
    status, body, headers = page.request("GET", "artifact/0/decode.onnx")
    assert (status, body) == (200, wanted)
    assert headers["cross-origin-opener-policy"] == "same-origin"
    status, body, _ = page.request("GET", "artifact/0/decode.onnx", headers={"Range": "bytes=100-"})
    assert (status, body) == (206, wanted[100:])
    assert "unsafe-eval" not in page.request("GET", "")[2]["content-security-policy"].replace("wasm-unsafe-eval", "")


@pytest.mark.parametrize(
    ("call", "body", "status"),
    [
        ("visit", b"[]", 400),
        ("visit", b"{", 400),
        ("visit", b"[" * 10_000, 400),
        ("visit", b" " * 20_000, 413),
        ("visit", json.dumps({**DEVICE, "cores": -1}).encode(), 400),
        ("visit", json.dumps({**DEVICE, "memory": float("nan")}).encode(), 400),
        ("visit", json.dumps({**DEVICE, "extra": 1}).encode(), 400),
        ("beat", b'{"memory": "much"}', 400),
        ("beat", b'{"memory": -5}', 400),
        ("hand", b"\x00" * 200_000, 413),
        ("hand", b"\xff\xff\xff\xff", 400),
        ("hand", b"ab", 400),
        ("hand", packed({"seq": 1, "seconds": [float("nan")]}), 400),
        ("hand", packed({"seq": 1, "seconds": [-1.0]}), 400),
        ("hand", packed({"seq": 1, "seconds": "x"}), 400),
        ("hand", packed({"seq": 1, "verdict": "pass"}), 400),
        ("hand", packed({"seq": 1, "blob": "x"}), 400),
        ("hand", packed({"seq": 1, "opened": {"threads": 1, "nodes": {"CPU": -1}, "devices": []}}), 400),
        ("verdict", b"{}", 404),
    ],
)
def test_a_post_that_means_nothing_changes_nothing(serve: Serve, call: str, body: bytes, status: int) -> None:
    served = serve()
    page = served.page
    page.come()
    page.post("begin")
    before = page.hand(0)
    assert page.request("POST", f"api/{call}?visit={page.visit}&cell=0", body)[0] == status
    assert page.hand(0) == before
    assert len(served.site.visits) == 1


@pytest.mark.parametrize(
    "query", ["", "?visit=x", "?visit={visit}&cell=-1", "?visit={visit}&cell=9999999", "?visit={visit}&cell=%D9%A3"]
)
def test_posts_about_nobody_are_refused(serve: Serve, query: str) -> None:
    page = serve().page
    page.come()
    assert page.request("POST", f"api/beat{query.format(visit=page.visit)}", b"{}")[0] == 400


def test_texts_of_a_browser_steer_no_terminal(serve: Serve, tmp_path: Path) -> None:
    served = serve("web:webgpu")
    served.page.come(browser="\x1b[2JEvil\n" + "x" * 5000, no_adapter="\x07none")
    said = next(events.events(served.site, once=False))
    assert said.isprintable()
    assert len(said) < 1000
    machine = written(tmp_path / "out").machine
    assert all(name.isprintable() for name in machine.packages)


def test_the_certificate_is_for_the_address_and_the_page_comes_through_it(serve: Serve) -> None:
    served = serve(secure=True)
    assert served.url.startswith("https://127.0.0.1:")
    status, body, _ = served.page.request("GET", "")
    assert status == 200
    assert b"<title>rwkv-export serve</title>" in body
    trusting = ssl.create_default_context(cadata=ssl.get_server_certificate((served.page.host, served.page.port)))
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    with (
        socket.create_connection((served.page.host, served.page.port)) as plain,
        trusting.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        assert secured.version() == "TLSv1.3"


def test_a_line_that_is_not_answered_gives_up() -> None:
    slow = line.Line(lambda: None, patience=0.2)
    with pytest.raises(Exception, match=r"the page did not finish 'run' within 0 s"):
        slow.ask({"op": "run"})


def test_a_closed_line_tells_who_asks_and_who_hands_in() -> None:
    closed = line.Line(lambda: None)
    waiting = threading.Timer(0.1, closed.close, ["over"])
    waiting.start()
    before = time.monotonic()
    with pytest.raises(Exception, match=r"^over$"):
        closed.ask({"op": "run"})
    assert b'"close"' in closed.hand(None)
    assert time.monotonic() - before < 5
