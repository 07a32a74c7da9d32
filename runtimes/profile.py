"""Where the time of a step goes, as a runtime's own profiler says: the table, and how it is summed up."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from runtimes import registry
from runtimes.contract import Artifact, Session
from runtimes.errors import Missing

T = TypeVar("T")

STEPS = 40
QUICKEST = 4
"""One step in so many is looked at: the quickest ones, which other programs disturbed least."""
NEGLIGIBLE = 0.0005
WARM_UP = 4
"""Steps before those, the first token apart."""


class Side(StrEnum):
    """Who spent it: a kernel inside a delegate, one of the runtime's own kernels, or whatever lies between those."""

    DELEGATE = "delegate"
    RUNTIME = "runtime"
    OVERHEAD = "overhead"


class Event(NamedTuple):
    """One call in one step; `ms` without the calls inside it."""

    name: str
    unit: str
    side: Side
    ms: float


@dataclass(frozen=True)
class Spent:
    """What all calls of one kernel or operator cost.

    name:      "Fully Connected (NC, F32) GEMM", "aten::linear", "MatMul"; of overhead what it is, as words
    unit:      the delegate or execution provider, "XnnpackBackend"; "" where there is none
    calls:     in one step
    total_ms:  over the steps looked at; median_ms: of one of them, all its calls together
    share:     total_ms / wall time of those steps
    """

    name: str
    unit: str
    side: Side
    calls: int
    total_ms: float
    median_ms: float
    share: float


@dataclass(frozen=True)
class Profile:
    """Where the time of decode steps goes, the dearest first; from a session of its own, because profiling slows.

    steps:   that ran while being profiled
    looked_at: how many of them `spent` tells of, the quickest; step_ms: median wall time of those
    spent:   shares sum to 1; to more where kernels of a delegate run at the same time
    """

    steps: int
    looked_at: int
    step_ms: float
    spent: tuple[Spent, ...]

    def dearest(self, most: int) -> tuple[Spent, ...]:
        """The first rows, without those that cost nothing to speak of."""
        return tuple(row for row in self.spent[:most] if row.share >= NEGLIGIBLE)

    @property
    def delegates(self) -> tuple[str, ...]:
        """Those that computed something, the dearest first."""
        return tuple(dict.fromkeys(row.unit for row in self.spent if row.side is Side.DELEGATE))

    def share(self, side: Side, unit: str | None = None) -> float:
        """Of all that one side spent, or one of its units."""
        return sum(row.share for row in self.spent if row.side is side and unit in (None, row.unit))


@runtime_checkable
class Profiler(Protocol):
    """What a module of runtimes/backends may have beside its Runtime."""

    def profile(self, artifact: Artifact, device: str, steps: int) -> Profile:
        """Decode `steps` tokens in a session that measures itself; raises Missing or BadArtifact."""


def profile(artifact: Artifact, place: str, *, steps: int = STEPS) -> Profile:
    """Where a decode step of the artifact spends its time in `place`, such as "pte:cpu".

    Raises Missing where the runtime has no profiler or cannot run here, and WrongCall for an unknown place.
    """
    runtime, device = registry.require(place)
    if not isinstance(runtime, Profiler):
        raise Missing(f"no profile for {place}: that runtime has no profiler")
    return runtime.profile(artifact, device, steps)


def decode(session: Session, steps: int) -> list[float]:
    """Seconds of each of the last `steps` greedy steps; the session makes 1 + WARM_UP more before them."""
    step = session.step(0, session.initial_state())
    seconds = []
    for _ in range(WARM_UP + steps):
        step = session.step(int(step.logits.argmax()), step.state)
        seconds.append(step.seconds)
    return seconds[WARM_UP:]


def quickest(steps: Sequence[T], seconds: Callable[[T], float]) -> list[T]:
    """The steps that are looked at, at least one of them."""
    return sorted(steps, key=seconds)[: math.ceil(len(steps) / QUICKEST)]


def summarise(traces: Sequence[Sequence[Event]], seconds: Sequence[float], *, around: str) -> Profile:
    """One profile of at least one step.

    traces:  the events of each step
    seconds: wall time of each; what the events leave of it is overhead
    around:  what that overhead is: "inputs and outputs"
    """
    steps = quickest(list(zip(traces, seconds, strict=True)), lambda step: step[1])
    spent: dict[tuple[str, str, Side], list[list[float]]] = defaultdict(lambda: [[] for _ in steps])
    for index, (trace, wall) in enumerate(steps):
        rest = max(0.0, 1000 * wall - sum(event.ms for event in trace))
        for event in (*trace, Event(around, "", Side.OVERHEAD, rest)):
            spent[event.name, event.unit, event.side][index].append(event.ms)
    walls = [1000 * wall for _, wall in steps]
    rows = sorted((_spent(*key, calls, sum(walls)) for key, calls in spent.items()), key=lambda row: -row.total_ms)
    return Profile(len(seconds), len(steps), median(walls), tuple(rows))


def _spent(name: str, unit: str, side: Side, calls: Sequence[Sequence[float]], whole: float) -> Spent:
    """calls: milliseconds of each call in each step; whole: of all steps."""
    each = [sum(step) for step in calls]
    count = round(sum(map(len, calls)) / len(calls))
    return Spent(name, unit, side, count, sum(each), median(each), sum(each) / whole)
