"""How fast is a session? Warm-up, first token, prefill and decode as raw samples; it compares with nothing.

Seconds are those the session reports for its calls, so that the harness around it costs nothing. Decode is a closed
loop: no token is due before the one ahead of it is there, so a stall delays samples and never hides any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from exporter.progress import Progress, silent
from runtimes.contract import Session, Step
from runtimes.errors import CheckFailed
from validation import diagnosis, machine
from validation.energy import Meter, NoMeter
from validation.outcome import Energy, Method, Samples

WINDOW = 8
"""Warm-up ends when the medians of two windows of this many steps agree within SETTLED."""
SETTLED = 0.05
MOST_STEPS, MOST_SECONDS = 64, 5.0
"""What warm-up may cost before decode is measured anyway, with a warning."""
REPETITIONS, PREFILL_SECONDS = 5, 20.0
"""Timed prefills; fewer where they take longer than this in all."""
BATCH = 16
"""Decoded tokens between two looks at memory, so that looking disturbs few of them."""


@dataclass(frozen=True)
class Timing:
    """What `time_session` measured; fields as in Latency. rss_bytes: largest resident size seen between calls."""

    first_token_s: float
    prefill: Samples
    decode: Samples
    rss_bytes: int
    method: Method
    energy: Energy
    warnings: tuple[str, ...]


def time_session(
    session: Session,
    prompt: Sequence[int],
    *,
    tokens: int,
    meter: Meter | None = None,
    text: str = "timing",
    progress: Progress = silent,
) -> Timing:
    """Time a session that has not run yet: one first token, prefills of `prompt`, then `tokens` greedy decode steps.

    meter: counts the energy of the decode steps

    Raises CheckFailed where the logits end up NaN or infinite: such numbers time nothing useful.
    """
    memory, meter, before = _Memory(), meter or NoMeter("not asked for"), machine.stolen()
    with progress(text, len(prompt) * (REPETITIONS + 1) + tokens) as advance:
        first = session.step(prompt[0], session.initial_state())
        memory.look()
        prefills: list[float] = []
        for repetition in range(REPETITIONS + 1):
            step = session.prefill(prompt, session.initial_state())
            memory.look()
            advance(len(prompt))
            if repetition:  # the first one warms up
                prefills.append(step.seconds)
            if sum(prefills) > PREFILL_SECONDS:
                break
        step, warmed, steady = _warm_up(session, step)

        def looked(done: int) -> None:
            memory.look()
            advance(done)

        meter.start()
        step, decodes, wall = decode_greedily(session, step, tokens, between=looked)
        energy = meter.stop(tokens, wall)
    if not np.isfinite(step.logits).all():
        raise CheckFailed(f"the logits hold NaN or infinite values after {tokens} generated tokens")
    decode, method = summarise(decodes, 1), Method(warmed, steady, wall, *machine.clock(), _stolen_since(before))
    warnings = [] if steady else [diagnosis.UNSETTLED]
    warnings += [*diagnosis.diagnose(decodes), *diagnosis.surroundings(decode.median_ms / 1000, method)]
    prefill = summarise(prefills, len(prompt))
    return Timing(first.seconds, prefill, decode, memory.peak, method, energy, tuple(warnings))


def decode_greedily(
    session: Session, step: Step, tokens: int, *, between: Callable[[int], object] = lambda done: None
) -> tuple[Step, list[float], float]:
    """Take the likeliest token `tokens` times: the last step, the seconds of each, and those of the whole loop.

    between: called after every few tokens with how many
    """
    seconds: list[float] = []
    begun = time.perf_counter()
    for start in range(0, tokens, BATCH):
        batch = min(BATCH, tokens - start)
        for _ in range(batch):
            step = session.step(_greedy(step), step.state)
            seconds.append(step.seconds)
        between(batch)
    return step, seconds, time.perf_counter() - begun


def summarise(seconds: Sequence[float], tokens: int) -> Samples:
    """At least one raw sample with its summary; percentiles interpolate linearly. tokens: per sample."""
    milliseconds = 1000 * np.asarray(seconds)
    median, p90, p99 = np.percentile(milliseconds, [50, 90, 99])
    return Samples(
        seconds=tuple(seconds),
        median_ms=float(median),
        p90_ms=float(p90),
        p99_ms=float(p99),
        mad_ms=float(np.median(np.abs(milliseconds - median))),
        min_ms=float(milliseconds.min()),
        tokens=tokens,
    )


def settled(seconds: Sequence[float]) -> bool:
    """Whether the medians of the last two windows agree."""
    if len(seconds) < 2 * WINDOW:
        return False
    before, now = np.median(seconds[-2 * WINDOW : -WINDOW]), np.median(seconds[-WINDOW:])
    return bool(abs(now - before) <= SETTLED * before)


def _warm_up(session: Session, step: Step) -> tuple[Step, int, bool]:
    """Decode until the times settle or the budget is spent: the last step, how many it took, whether they settled."""
    seconds: list[float] = []
    while len(seconds) < MOST_STEPS and sum(seconds) < MOST_SECONDS:
        step = session.step(_greedy(step), step.state)
        seconds.append(step.seconds)
        if settled(seconds):
            return step, len(seconds), True
    return step, len(seconds), False


def _stolen_since(before: tuple[float, float] | None) -> float | None:
    """Share of processor time that was stolen since then."""
    now = machine.stolen()
    if before is None or now is None:
        return None
    return (now[0] - before[0]) / (now[1] - before[1]) if now[1] > before[1] else 0.0


def _greedy(step: Step) -> int:
    return int(step.logits.argmax())


class _Memory:
    """The largest resident size of this process, looked at between calls."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self.peak = 0

    def look(self) -> None:
        self.peak = max(self.peak, int(self._process.memory_info().rss))
