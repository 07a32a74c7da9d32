"""How fast is a page? The measurement of latency.py, in commands of several steps, so that no network lies between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from exporter.progress import Progress
from runtimes.contract import State
from runtimes.errors import CheckFailed
from validation import diagnosis, latency
from validation.outcome import Samples
from validation.serve.session import PageSession


@dataclass
class Timed:
    """What was measured so far, in seconds; it grows while a page runs, and stays when that goes away."""

    prompt: int
    load: float = 0.0
    first: float = 0.0
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    settled: bool = True

    @property
    def samples(self) -> tuple[Samples | None, Samples | None]:
        """Decode and prefill with their summaries."""
        decode = latency.summarise(self.decode, 1) if self.decode else None
        return decode, latency.summarise(self.prefill, self.prompt) if self.prefill else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about the samples."""
        found = [] if self.settled else [diagnosis.UNSETTLED]
        return (*found, *(diagnosis.diagnose(self.decode) if self.decode else []))


def time_page(
    session: PageSession, prompt: Sequence[int], *, tokens: int, into: Timed, text: str, progress: Progress
) -> None:
    """Time a page that has not run yet: one first token, prefills of `prompt`, then `tokens` greedy decode steps.

    Raises CheckFailed where the logits end up NaN or infinite: such numbers time nothing useful.
    """
    with progress(text, latency.REPETITIONS + 1 + tokens) as advance:
        into.first = session.step(prompt[0], session.initial_state()).seconds
        for repetition in range(latency.REPETITIONS + 1):
            step = session.prefill(prompt, session.initial_state())
            advance(1)
            if repetition:  # the first one warms up
                into.prefill.append(step.seconds)
            if sum(into.prefill) > latency.PREFILL_SECONDS:
                break
        token, state = int(step.logits.argmax()), step.state
        token, state, into.settled = _warm_up(session, token, state)
        while len(into.decode) < tokens:
            seconds, step = session.decode(token, state, min(latency.WINDOW, tokens - len(into.decode)))
            token, state = int(step.logits.argmax()), step.state
            into.decode += seconds
            advance(len(seconds))
    if not np.isfinite(step.logits).all():
        raise CheckFailed(f"the logits hold NaN or infinite values after {tokens} generated tokens")


def _warm_up(session: PageSession, token: int, state: State) -> tuple[int, State, bool]:
    """Decode until the times settle or the budget is spent, and whether they settled."""
    seconds: list[float] = []
    while len(seconds) < latency.MOST_STEPS and sum(seconds) < latency.MOST_SECONDS:
        taken, step = session.decode(token, state, latency.WINDOW)
        token, state = int(step.logits.argmax()), step.state
        seconds += taken
        if latency.settled(seconds):
            return token, state, True
    return token, state, False
