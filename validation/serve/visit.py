"""One browser that came: what it is asked to run, how far that is, and its results file; it speaks no HTTP."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from exporter.progress import Advance
from runtimes.errors import WrongCall
from runtimes.schema import to_plain
from validation import machine, outcome
from validation.outcome import Results
from validation.serve import cell, places
from validation.serve.cell import Offer, Plan, Row
from validation.serve.device import Device
from validation.serve.line import Line
from validation.serve.places import Place
from validation.serve.wire import Answer

SILENCE = 45.0
"""Seconds without a sign of life after which a page is taken to be gone; one in front gives one every second."""
MOST_NAME = 60
"""Letters of a device's name that its file has."""
STOPPED = "serving was stopped"
GONE = "the page went away: closed, killed by the system, or put in the background"


@dataclass
class Cell:
    """One artifact in one place.

    said:     what is being done, how much of how much is done
    finished: when it was done, by the monotonic clock
    """

    offer: Offer
    place: Place
    line: Line
    state: str = "waiting"
    said: tuple[str, int, int] = ("", 0, 0)
    rows: list[Row] = field(default_factory=list)
    finished: float = 0.0


class Visit:
    """The cells of one browser, one after another; every row is in the results file as soon as it is known."""

    def __init__(self, device: Device, offers: Sequence[Offer], on: Sequence[Place], plan: Plan, folder: Path) -> None:
        self.id = secrets.token_urlsafe(12)
        self.device = device
        self.done = threading.Event()
        self.told = False
        self._plan = plan
        self._came = machine.now()
        self._seen = time.monotonic()
        self._memory = 0
        self._lock = threading.Lock()
        name = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")[:MOST_NAME]
        self.file = folder / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}.json"
        self.cells = [Cell(offer, places.on(device, place), Line(self._alive)) for offer in offers for place in on]
        for each in self.cells:
            reason = places.lacking(each.place, device) or places.refused(each.place, device, each.offer.demands)
            if reason:
                each.rows += cell.unable(each.offer, each.place, reason)
                self._end(each)
        self._write()

    def begin(self, index: int) -> None:
        """Start the harness of a cell; raises WrongCall where it ran, runs, or another one does."""
        with self._lock:
            each = self._cell(index)
            if each.state != "waiting" or any(other.state == "running" for other in self.cells):
                raise WrongCall(f"cell {index} is {each.state}, or another one is running")
            each.state, self._memory = "running", 0
        threading.Thread(target=self._run, args=(each,), daemon=True).start()

    def hand(self, index: int, answer: Answer | None) -> bytes:
        """An answer for the harness of a cell that was begun; the next command."""
        each = self._cell(index)
        if each.state == "waiting":
            raise WrongCall(f"cell {index} was not begun")
        self._seen = time.monotonic()
        return each.line.hand(answer)

    def beat(self, memory: int) -> None:
        """A sign of life, and the bytes that the browser tells the page takes, 0 where it does not."""
        self._seen = time.monotonic()
        self._memory = max(self._memory, memory)

    def abandon(self, reason: str) -> None:
        """End the cell that is running: its page is gone, or its worker."""
        for each in self.cells:
            if each.state == "running":
                each.line.close(reason)

    @property
    def lost(self) -> bool:
        """Whether there was no sign of life for so long that none will come, and nothing is running."""
        return self._alive() is not None and not any(each.state == "running" for each in self.cells)

    def close(self) -> None:
        """End what is running; what was not begun gets rows that say so."""
        self.abandon(STOPPED)
        for each in self.cells:
            while each.state == "running":
                time.sleep(0.05)
            if each.state == "waiting":
                each.rows += cell.unable(each.offer, each.place, f"not begun: {self._alive() or STOPPED}")
                self._end(each)
        self._write()

    def status(self) -> dict[str, Any]:
        """What the page shows."""
        with self._lock:
            self.told = self.done.is_set()
            cells = [_shown(each) for each in self.cells]
        return {"visit": self.id, "device": self.device.name, "done": self.told, "cells": cells}

    def results(self) -> Results:
        """All rows so far."""
        rows = [row for each in self.cells for row in each.rows]
        return outcome.collected(rows, self.device.machine(), self._came)

    def _run(self, each: Cell) -> None:
        def keep(row: Row) -> None:
            each.rows.append(row)
            self._write()

        @contextmanager
        def progress(text: str, total: int | None = None) -> Iterator[Advance]:
            each.said = (text, 0, total or 0)

            def advance(amount: int) -> None:
                each.said = (text, each.said[1] + amount, total or 0)

            yield advance

        try:
            cell.run(
                each.offer, each.place, each.line, self._plan, keep=keep, memory=lambda: self._memory, progress=progress
            )
        except Exception as error:
            each.rows.append(cell.stopped(each.offer, each.place, error))
        finally:
            each.line.close("the cell is done")
            self._end(each)

    def _end(self, each: Cell) -> None:
        with self._lock:
            each.state, each.finished = "done", time.monotonic()
            if all(other.state == "done" for other in self.cells):
                self.done.set()

    def _write(self) -> None:
        with self._lock:
            outcome.write(self.results(), self.file)

    def _alive(self) -> str | None:
        return GONE if time.monotonic() - self._seen > SILENCE else None

    def _cell(self, index: int) -> Cell:
        if not 0 <= index < len(self.cells):
            raise WrongCall(f"there is no cell {index}")
        return self.cells[index]


def _shown(each: Cell) -> Mapping[str, Any]:
    identity = each.offer.identity(each.place)
    text, done, total = each.said
    return {
        "artifact": identity.artifact,
        "place": each.place.name,
        "state": each.state,
        "said": {"text": text, "done": done, "total": total},
        "rows": {type(row).__name__.lower(): to_plain(row) for row in each.rows},
    }
