"""The far side: opens one artifact and answers for its session on stdin and stdout; needs numpy and the runtime only.

`python -m runtimes.agent.serve` is started by runtimes/agent/session.py. It believes whoever started it: nothing
listens on a network. Whatever a runtime prints goes to stderr.
"""

from __future__ import annotations

import os
import platform
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import runtimes
from runtimes.agent import frames
from runtimes.agent.frames import Frame
from runtimes.contract import Session, State, Step
from runtimes.errors import RwkvExportError, WrongCall


class Server:
    """Holds the session and the states that were handed out, by number."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.states: dict[int, State] = {}
        self.handed = 0

    def answer(self, asked: Frame) -> Frame:
        """What one request gives; raises what the session raises, and WrongCall for a request that cannot be meant."""
        request = asked.header
        for number in request.get("drop", ()):
            self.states.pop(number, None)
        name = str(request.get("ask"))
        if name not in REQUESTS:
            raise WrongCall(f"the agent has no request {name!r}", hint=f"known: {', '.join(REQUESTS)}")
        return REQUESTS[name](self, request, asked)

    def open(self, request: Mapping[str, Any], _: Frame) -> Frame:
        """Open the artifact; says what this side is."""
        self.session = runtimes.open_session(Path(request["folder"]), str(request["place"]))
        return Frame({"python": platform.python_version(), "machine": platform.machine(), "numpy": np.__version__})

    def initial_state(self, _: Mapping[str, Any], __: Frame) -> Frame:
        """The state to start from."""
        return Frame({"state": self._keep(self._opened().initial_state())})

    def step(self, request: Mapping[str, Any], _: Frame) -> Frame:
        """One token."""
        return self._stepped(self._opened().step(request["token"], self._state(request)))

    def prefill(self, request: Mapping[str, Any], _: Frame) -> Frame:
        """Several tokens."""
        return self._stepped(self._opened().prefill(request["tokens"], self._state(request)))

    def get_state(self, request: Mapping[str, Any], _: Frame) -> Frame:
        """The tensors of a state."""
        return Frame({}, self._opened().read_state(self._state(request)))

    def set_state(self, _: Mapping[str, Any], asked: Frame) -> Frame:
        """A state of the tensors that came along."""
        return Frame({"state": self._keep(self._opened().write_state(asked.tensors))})

    def describe(self, _: Mapping[str, Any], __: Frame) -> Frame:
        """Where the session runs."""
        return Frame({"placement": asdict(self._opened().placement())})

    def close(self, _: Mapping[str, Any], __: Frame) -> Frame:
        """Let go of everything."""
        self.states.clear()
        if self.session is not None:
            self.session.close()
            self.session = None
        return Frame({})

    def _opened(self) -> Session:
        if self.session is None:
            raise WrongCall("the agent has opened no artifact")
        return self.session

    def _state(self, request: Mapping[str, Any]) -> State:
        number = request.get("state")
        if number not in self.states:
            raise WrongCall(f"the agent has no state {number!r}")
        return self.states[number]

    def _keep(self, state: State) -> int:
        self.handed += 1
        self.states[self.handed] = state
        return self.handed

    def _stepped(self, step: Step) -> Frame:
        return Frame({"state": self._keep(step.state), "seconds": step.seconds}, {"logits": step.logits})


REQUESTS = {
    "open": Server.open,
    "initial_state": Server.initial_state,
    "step": Server.step,
    "prefill": Server.prefill,
    "get_state": Server.get_state,
    "set_state": Server.set_state,
    "describe": Server.describe,
    "close": Server.close,
}


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer until nobody asks any more; an exception is an answer too."""
    server = Server()
    while True:
        try:
            asked = frames.read(requests)
        except frames.Ended:
            return
        try:
            made = server.answer(asked)
        except RwkvExportError as error:
            made = Frame({"error": {"kind": type(error).__name__, "message": error.message, "hint": error.hint}})
        except Exception as error:  # a runtime's own
            traceback.print_exc()
            made = Frame({"error": {"kind": "", "message": f"{type(error).__name__}: {error}", "hint": None}})
        frames.write(replies, made)


def main() -> None:
    """Keep the real stdout for replies, and let everybody else's print go to stderr."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    requests = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    serve(requests, replies)


if __name__ == "__main__":
    main()
