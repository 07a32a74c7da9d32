"""Replies of the far side of a session, which may run on another machine."""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from runtimes.agent.frames import Frame
from runtimes.agent.session import AgentSession, Handle
from tests.fuzz.readers.agent_frames import packed

LOGITS = {"logits": np.ones(7, np.float32)}
PLACE = {"requested": "ort:cpu", "observed": "ort:cpu", "nodes": {"CPU": 3}, "evidence": "run"}


def seeds(folder: Path) -> Iterator[bytes]:
    stepped, described = Frame({"state": 1, "seconds": 0.1}, LOGITS), Frame({"placement": PLACE})
    yield packed(stepped) + packed(described) + packed(Frame({}, LOGITS))
    yield packed(Frame({"error": {"kind": "BadArtifact", "message": "no", "hint": None}}))


def read(data: bytes, folder: Path) -> None:
    session = AgentSession.__new__(AgentSession)
    ended = SimpleNamespace(stdin=io.BytesIO(), stdout=io.BytesIO(data), stderr=io.BytesIO(), returncode=0)
    ended.wait = ended.poll = lambda *_: 0
    session._process, session._where, session._dropped, session._said = ended, "", [], deque()
    session._listener = threading.Thread(target=lambda: None)
    session._listener.start()
    step = session.step(3, Handle(0, []))  # type: ignore[arg-type]
    session.placement()
    assert step.logits is not None and session.read_state(step.state)
