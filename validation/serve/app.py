"""The HTTP side: listed files and a few posts, all below a secret path; what posts mean is the visit's business."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtimes.errors import WrongCall
from runtimes.schema import SchemaError
from validation.outcome import Results
from validation.serve import device, places, wire
from validation.serve.cell import Offer, Plan
from validation.serve.places import Place
from validation.serve.visit import Visit

PAGE = Path(__file__).with_name("page")
MOST_VISITS = 32
MOST_FACTS = 1 << 14
"""Bytes of a post that tells of a device or gives a sign of life."""
KINDS = {".html": "text/html", ".css": "text/css", ".mjs": "text/javascript", ".wasm": "application/wasm"}
POLICY = (
    "default-src 'self'; script-src 'self' {scripts}; worker-src 'self' blob:; img-src data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
WORKER = {"Content-Security-Policy": POLICY.format(scripts="'unsafe-eval'")}
"""onnxruntime-web's WebNN evaluates text; only the worker that holds it may."""
HEADERS = {
    "Content-Security-Policy": POLICY.format(scripts="'wasm-unsafe-eval'"),
    # Without these two a page may not share memory between threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Site:
    """What is served, and the visits so far.

    token: the first part of every path; without it there is nothing
    files: path below the token -> file
    on:    where every artifact is run; empty for what is usual on the device that comes
    """

    def __init__(
        self, files: Mapping[str, Path], offers: Sequence[Offer], on: Sequence[Place], plan: Plan, folder: Path
    ) -> None:
        self.token = secrets.token_urlsafe(16)
        self.visits: dict[str, Visit] = {}
        self._lock = threading.Lock()
        self._files = {f"{path.name}": path for path in PAGE.iterdir() if path.suffix in KINDS} | dict(files)
        self._files[""] = PAGE / "index.html"
        self._offers, self._on, self._plan, self._folder = offers, on, plan, folder
        states = [sum(tensor.spec().nbytes for tensor in offer.artifact.manifest.state) for offer in offers]
        vocab = max(offer.artifact.manifest.model.vocab for offer in offers)
        self._most = max([*states, 4 * vocab]) + wire.MOST_HEADER + wire.LENGTH.size

    def app(self) -> ASGIApp:
        """The ASGI application."""
        routes = [
            Route("/{token}/api/{call}", self._post, methods=["POST"]),
            Route("/{token}/{path:path}", self._get, methods=["GET"]),
        ]
        return _Guarded(Starlette(routes=routes), self.token)

    def results(self) -> list[Results]:
        """What every browser gave, one document each."""
        return [visit.results() for visit in self.visits.values()]

    def close(self) -> None:
        """No visit goes on."""
        for visit in self.visits.values():
            visit.close()

    async def _get(self, request: Request) -> Response:
        path = self._files.get(request.path_params["path"])
        if path is None:
            return Response("there is nothing here", 404)
        kind = KINDS.get(path.suffix, "application/octet-stream")
        return FileResponse(path, media_type=kind, headers=WORKER if path.name == "worker.mjs" else None)

    async def _post(self, request: Request) -> Response:
        call = {"visit": self._visit, "begin": self._begin, "hand": self._hand, "beat": self._beat, "gone": self._gone}
        chosen = call.get(request.path_params["call"])
        if chosen is None:
            return Response("there is nothing here", 404)
        most = self._most if chosen == self._hand else MOST_FACTS
        try:
            body = await _body(request, most)
            if body is None:
                return Response(f"more than {most} bytes", 413)
            return await run_in_threadpool(chosen, request.query_params, body)
        except SchemaError as error:
            return Response(f"not understood: {error}", 400)
        except WrongCall as error:
            return Response(error.message, 409)
        except ClientDisconnect:
            return Response(status_code=400)

    def _visit(self, query: Mapping[str, str], body: bytes) -> Response:
        """A page that begins, or goes on after it was loaded again."""
        document = wire.parse(body)
        known = self.visits.get(str(document.pop("visit", "")))
        if known:
            known.beat(0)
            known.abandon("the page was loaded again")
            return JSONResponse(known.status())
        found = device.read(document)
        with self._lock:
            if len(self.visits) >= MOST_VISITS:
                raise WrongCall(f"{MOST_VISITS} browsers were here already; start `rwkv-export serve` again")
            visit = Visit(found, self._offers, self._on or places.usual(found), self._plan, self._folder)
            self.visits[visit.id] = visit
        return JSONResponse(visit.status())

    def _begin(self, query: Mapping[str, str], body: bytes) -> Response:
        visit, index = self._named(query)
        visit.begin(index)
        return Response(status_code=204)

    def _hand(self, query: Mapping[str, str], body: bytes) -> Response:
        visit, index = self._named(query)
        answer = wire.unpack(body) if body else None
        return Response(visit.hand(index, answer), media_type="application/octet-stream")

    def _beat(self, query: Mapping[str, str], body: bytes) -> Response:
        visit, _ = self._named(query)
        memory: Any = wire.parse(body).get("memory", 0)
        if not isinstance(memory, int) or not 0 <= memory < 1 << 50:
            raise SchemaError("memory must be a number of bytes")
        visit.beat(memory)
        return JSONResponse(visit.status())

    def _gone(self, query: Mapping[str, str], body: bytes) -> Response:
        """What a page sends as it closes, or where its worker failed."""
        visit, _ = self._named(query)
        visit.abandon(wire.plain(str(wire.parse(body).get("reason", ""))) or "the page was closed")
        return JSONResponse(visit.status())

    def _named(self, query: Mapping[str, str]) -> tuple[Visit, int]:
        visit, index = self.visits.get(query.get("visit", "")), query.get("cell", "0")
        if visit is None or not index.isascii() or not index.isdigit() or len(index) > 6:
            raise SchemaError("no such visit or cell")
        return visit, int(index)


class _Guarded:
    """Nothing without the token, compared in constant time, before anything of a request is read; headers on all."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        first = scope.get("path", "").split("/")[1:2]
        if scope["type"] == "http" and first and secrets.compare_digest(first[0].encode(), self._token):
            await self._app(scope, receive, with_headers)
        elif scope["type"] == "http":
            await Response("there is nothing here", 404)(scope, receive, with_headers)


async def _body(request: Request, most: int) -> bytes | None:
    """The body, None where it is longer than `most` bytes."""
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > most:
            return None
    return bytes(read)
