"""Hands commands of a harness to a page that asks for them, and its answers back; it knows none of their meanings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from threading import Condition
from typing import Any

from runtimes.errors import RwkvExportError
from validation.serve import wire
from validation.serve.wire import Answer

POLL = 15.0
"""Seconds a page's request is held while there is no command for it."""
PATIENCE = 300.0
"""Seconds a page may take over one command: loading a large graph, compiling its shaders."""


class Line:
    """One harness thread calls `ask`, the threads of HTTP requests call `hand`.

    A page that repeats an answer, because the reply to it was lost, gets the same command again: nothing is done twice.

    alive: says why the page is taken to be gone, or None
    """

    def __init__(self, alive: Callable[[], str | None], patience: float = PATIENCE) -> None:
        self._alive = alive
        self._patience = patience
        self._changed = Condition()
        self._seq = 0
        self._command: bytes | None = None
        self._answer: Answer | None = None
        self._closed: str | None = None

    def ask(self, header: Mapping[str, Any], blob: bytes = b"") -> Answer:
        """The page's answer to a command; raises RwkvExportError where it failed, went away or takes too long."""
        with self._changed:
            self._seq += 1
            self._command, self._answer = wire.pack({**header, "seq": self._seq}, blob), None
            self._changed.notify_all()
            until = time.monotonic() + self._patience
            while self._answer is None:
                if reason := self._closed or self._alive():
                    raise RwkvExportError(reason)
                if time.monotonic() > until:
                    raise RwkvExportError(f"the page did not finish {header['op']!r} within {self._patience:.0f} s")
                self._changed.wait(timeout=min(1.0, self._patience))
            answer = self._answer
        if answer.error is not None:
            raise RwkvExportError(f"the browser could not {header['op']}: {wire.plain(answer.error)}")
        return answer

    def hand(self, answer: Answer | None) -> bytes:
        """Take an answer, give the next command: a frame whose op is "wait" after POLL seconds without one."""
        with self._changed:
            if answer and answer.seq == self._seq and self._command is not None:
                self._answer, self._command = answer, None
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._command is not None or self._closed, timeout=POLL)
            if self._closed is not None:
                return wire.pack({"op": "close"})
            return self._command or wire.pack({"op": "wait"})

    def close(self, reason: str) -> None:
        """Whoever asks, or hands something in, is told that it is over."""
        with self._changed:
            self._closed = self._closed or reason
            self._changed.notify_all()
