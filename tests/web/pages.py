"""A page without a browser: it speaks the protocol of worker.mjs and steps the served graphs with onnxruntime."""

from __future__ import annotations

import http.client
import json
import ssl
import struct
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnxruntime

from runtimes.contract import Array

DEVICE: dict[str, Any] = {
    "browser": "Fake",
    "version": "1.2.3",
    "system": "Linux",
    "model": "",
    "architecture": "x86 64 bit",
    "cores": 1,
    "memory": 8,
    "isolated": True,
    "adapter": None,
    "no_adapter": "it has no WebGPU",
    "webnn": {},
}

Spoil = Callable[[Mapping[str, Any], dict[str, Any], list[Array]], list[Array]]
"""Changes an answer: the command, the answer's header (in place), the arrays; returns the arrays to send."""


def honest(command: Mapping[str, Any], header: dict[str, Any], parts: list[Array]) -> list[Array]:
    return parts


class FakePage:
    """What page.mjs and worker.mjs do, over one connection a request, so that a lost one hurts nobody."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        assert where.hostname
        self.host, self.port, self.base, self.secure = where.hostname, where.port, where.path, where.scheme == "https"
        self.visit: str = ""

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """A path below the token, or from the root where it begins with a slash: status, body and headers."""
        unchecked = ssl._create_unverified_context() if self.secure else None  # noqa: S323  # as a person who goes on
        connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(self.host, self.port, timeout=60, context=unchecked)
            if self.secure
            else http.client.HTTPConnection(self.host, self.port, timeout=60)
        )
        try:
            connection.request(method, path if path[:1] == "/" else self.base + path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            connection.close()

    def post(self, call: str, document: Any = None, cell: int = 0) -> Any:
        """A JSON call that must succeed."""
        query = f"api/{call}?visit={self.visit}&cell={cell}"
        status, body, _ = self.request("POST", query, json.dumps(document or {}).encode())
        assert status in (200, 204), (status, body)
        return json.loads(body) if body else None

    def come(self, **changes: Any) -> Any:
        """Tell of the device; returns the status."""
        status = self.post("visit", {**DEVICE, **changes})
        self.visit = status["visit"]
        return status

    def hand(self, cell: int, frame: bytes | None = None) -> tuple[dict[str, Any], bytes]:
        """The next command."""
        status, body, _ = self.request("POST", f"api/hand?visit={self.visit}&cell={cell}", frame)
        assert status == 200, (status, body)
        return unpacked(body)

    def run(self, cell: int, spoil: Spoil = honest, *, commands: int = 100_000) -> Any:
        """Do what is asked of a cell, at most so many commands, and return the status when that is done."""
        self.post("begin", cell=cell)
        engine, frame = Engine(self), None
        for _ in range(commands):
            command, blob = self.hand(cell, frame)
            if command["op"] == "close":
                return self.settled(cell)
            frame = None
            if command["op"] != "wait":
                header, parts = engine.execute(command, blob)
                header["seq"] = command["seq"]
                parts = spoil(command, header, parts)
                frame = packed(header, parts)
        return self.post("beat")

    def settled(self, cell: int) -> Any:
        """The status once a cell is done."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            status = self.post("beat", {"memory": 5_000_000})
            if status["cells"][cell]["state"] == "done":
                return status
            time.sleep(0.02)
        raise AssertionError(f"cell {cell} is not done")


class Engine:
    """The operations of worker.mjs; states are lists of arrays."""

    def __init__(self, page: FakePage) -> None:
        self.page = page
        self.held: dict[int, list[Array]] = {}

    def execute(self, command: Mapping[str, Any], blob: bytes) -> tuple[dict[str, Any], list[Array]]:
        for number in command["drop"]:
            del self.held[number]
        done: tuple[dict[str, Any], list[Array]] = getattr(self, command["op"])(command, blob)
        return done

    def open(self, command: Mapping[str, Any], blob: bytes) -> tuple[dict[str, Any], list[Array]]:
        self.state = command["state"]
        self.graphs = {}
        with tempfile.TemporaryDirectory() as folder:
            for file in command["data"]:
                status, body, _ = self.page.request("GET", file["url"])
                assert (status, len(body)) == (200, file["bytes"])
                (Path(folder) / file["path"]).write_bytes(body)
            for graph in command["graphs"]:
                path = Path(folder) / graph["url"].rpartition("/")[2]
                path.write_bytes(self.page.request("GET", graph["url"])[1])
                self.graphs[graph["tokens"]] = graph, onnxruntime.InferenceSession(path)
        nodes = {"CPUExecutionProvider": 12}
        return {"seconds": [0.5], "opened": {"threads": command["threads"], "nodes": nodes, "devices": []}}, []

    def write(self, command: Mapping[str, Any], blob: bytes) -> tuple[dict[str, Any], list[Array]]:
        arrays, start = [], 0
        for port in self.state:
            count = int(np.prod(port["shape"]))
            arrays.append(np.frombuffer(blob, port["dtype"], count, start).reshape(port["shape"]))
            start += arrays[-1].nbytes
        self.held[command["to"]] = arrays
        return {}, []

    def read(self, command: Mapping[str, Any], blob: bytes) -> tuple[dict[str, Any], list[Array]]:
        return {}, list(self.held[command["from"]])

    def run(self, command: Mapping[str, Any], blob: bytes) -> tuple[dict[str, Any], list[Array]]:
        state = self.held[command["from"]]
        for size, tokens in command["calls"]:
            logits, state = self.call(size, tokens, state)
        self.held[command["to"]] = state
        return {"seconds": [0.001] * len(command["calls"]), "logits": "float32"}, [logits]

    def decode(self, command: Mapping[str, Any], blob: bytes) -> tuple[dict[str, Any], list[Array]]:
        state, token = self.held[command["from"]], command["token"]
        for _ in range(command["count"]):
            logits, state = self.call(1, [token], state)
            token = int(logits.argmax())
        self.held[command["to"]] = state
        return {"seconds": [0.001 + index / 1e6 for index in range(command["count"])], "logits": "float32"}, [logits]

    def call(self, size: int, tokens: Sequence[int], state: list[Array]) -> tuple[Array, list[Array]]:
        graph, session = self.graphs[size]
        feeds = {port["input"]: array for port, array in zip(self.state, state, strict=True)}
        outputs = [graph["output"], *(port["output"] for port in self.state)]
        logits, *new = session.run(outputs, {graph["input"]: np.array(tokens, graph["dtype"]), **feeds})
        return logits, new


def packed(header: Mapping[str, Any], parts: Sequence[Array] = ()) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<I", len(text)) + text + b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def unpacked(frame: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<I", frame)
    return json.loads(frame[4 : 4 + length]), frame[4 + length :]
