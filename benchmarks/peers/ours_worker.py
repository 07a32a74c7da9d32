"""Serves an artifact of ours over the line protocol; run as `python -m peers.ours_worker FOLDER PLACE`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import psutil

from peers.protocol import serve, token, tokens
from runtimes import manifest, open_session
from runtimes.contract import Array, Session


class Ours:
    """The public session, called as its users call it."""

    def __init__(self, session: Session, vocab: int) -> None:
        self._session = session
        self._vocab = vocab
        self._logits: Array = np.zeros(0, np.float32)

    def decode(self, count: int) -> list[float]:
        """One step a token; the time of a step includes our own checks."""
        state, seconds = self._session.initial_state(), []
        for index in range(count):
            before = time.perf_counter()
            step = self._session.step(token(index, self._vocab), state)
            seconds.append(time.perf_counter() - before)
            state, self._logits = step.state, step.logits
        return seconds

    def prefill(self, count: int) -> float:
        """A prompt from the initial state, by the session's own choice of graphs."""
        prompt, state = tokens(count, self._vocab), self._session.initial_state()
        before = time.perf_counter()
        step = self._session.prefill(prompt, state)
        seconds = time.perf_counter() - before
        self._logits = step.logits
        return seconds

    def logits(self) -> Array:
        """After the last token that was fed."""
        return self._logits


def main() -> None:
    folder, place = Path(sys.argv[1]), sys.argv[2]
    imported = psutil.Process().memory_info().rss
    before = time.perf_counter()
    session = open_session(folder, place)
    seconds = time.perf_counter() - before
    observed = session.placement().observed
    vocab = manifest.read(folder).model.vocab
    serve(Ours(session, vocab), {"load_seconds": seconds, "base_rss_bytes": imported, "observed": observed})


if __name__ == "__main__":
    main()
