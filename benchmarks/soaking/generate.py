"""One runtime generating text at a steady pace in a process of its own; it records and judges nothing.

    python generate.py ARTIFACT PLACE --hours 1 --steps 100000 --windows 60 --seed 0 --out FOLDER

Prints a line of JSON for each window. Writes tokens.npy, logits.npy and state.npz: what was fed, and what was left.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil

import runtimes
from runtimes.contract import Session, Step
from runtimes.generate import nucleus
from runtimes.tokenizer import END_OF_TEXT

WARM_UP = 50  # steps whose time is not recorded: lazy allocations, caches


class Pace:
    """Hands out start times that are spread evenly over the whole run; one that is behind catches up."""

    def __init__(self, seconds: float, steps: int) -> None:
        self._start, self._each = time.perf_counter(), seconds / steps

    def wait(self, step: int) -> None:
        """Until the step's time has come."""
        left = self._start + step * self._each - time.perf_counter()
        if left > 0:
            time.sleep(left)


def generated(session: Session, steps: int, seconds: float, seed: int) -> Iterator[tuple[int, Step]]:
    """Each token that was fed and what it gave; every token is drawn from the logits before it, at temperature 1."""
    random, pace = np.random.default_rng(seed), Pace(seconds, steps)
    token, state = END_OF_TEXT, session.initial_state()
    for index in range(steps):
        pace.wait(index)
        step = session.step(token, state)
        yield token, step
        odds = nucleus(step.logits, temperature=1.0, top_p=1.0)
        token, state = int(random.choice(len(odds), p=odds)), step.state


def soak(session: Session, given: argparse.Namespace) -> None:
    """Run, print the windows, write what was left."""
    process, began = psutil.Process(), time.perf_counter()
    tokens, times, size = np.zeros(given.steps, np.int32), list[float](), given.steps // given.windows
    for index, (token, step) in enumerate(generated(session, given.steps, given.hours * 3600, given.seed)):
        tokens[index] = token
        if index >= WARM_UP:
            times.append(step.seconds * 1e3)
        if (index + 1) % size == 0 or index + 1 == given.steps:
            middle, late = np.quantile(times, [0.5, 0.99]) if times else (0.0, 0.0)
            spent = process.cpu_times()
            told = {
                "steps": index + 1,
                "seconds": round(time.perf_counter() - began, 1),
                "median_ms": round(float(middle), 4),
                "p99_ms": round(float(late), 4),
                "rss_bytes": process.memory_info().rss,
                "cpu_seconds": round(spent.user + spent.system, 2),
            }
            print(json.dumps(told), flush=True)
            times.clear()
    np.save(given.out / "tokens.npy", tokens)
    np.save(given.out / "logits.npy", step.logits)
    np.savez(given.out / "state.npz", **session.read_state(step.state))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("place")
    for name, kind in {"hours": float, "steps": int, "windows": int, "seed": int, "out": Path}.items():
        parser.add_argument(f"--{name}", type=kind, required=True)
    given = parser.parse_args()
    with closing(runtimes.open_session(given.artifact, given.place)) as session:
        soak(session, given)
        print(json.dumps({"observed": session.placement().observed}), file=sys.stdout, flush=True)


if __name__ == "__main__":
    main()
