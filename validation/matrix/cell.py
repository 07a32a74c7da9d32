"""Runs one cell to a results document, on whatever machine it finds itself, alone with the clock there."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from runtimes import manifest
from runtimes.schema import to_plain
from validation import machine, outcome, runner
from validation.evidence import doubts
from validation.matrix.plan import Cell
from validation.outcome import Latency, Outcome, Parity, Quality, Results

TURNSTILE = Path(tempfile.gettempdir()) / "rwkv-export-timing.lock"
"""Held while a cell runs: two at once on one machine would measure each other. The system frees it with its owner."""


def run(cell: Cell) -> str:
    """Validate and time one artifact in one place; returns a results document as JSON text.

    Text, because the machine that reads it may have another version of this package: its reader checks every field.
    """
    with FileLock(TURNSTILE, mode=0o666):
        return json.dumps(to_plain(_work(cell)))


def unrun(cell: Cell, kind: Outcome, reason: str) -> Results:
    """The document of a cell that could not run: a row for each part that was wanted, and `reason`."""
    parity = (Parity(cell.identity, kind, (reason,), steps=0),) if cell.work.validate else ()
    latency = (Latency(cell.identity, kind, (reason,)),) if cell.work.bench else ()
    return Results(outcome.SCHEMA, machine.describe(cell.device.name), parity, latency, made=machine.now())


def settled(results: Results, cell: Cell) -> bool:
    """Whether running the cell again could tell nothing new: it is what ran, nothing raised, nothing was missing."""
    rows: tuple[Parity | Latency | Quality, ...] = (*results.parity, *results.latency, *results.quality)
    own = all((row.identity.digest, row.identity.requested) == (cell.digest, cell.place) for row in rows)
    ran = not {row.outcome for row in rows} & {Outcome.ERROR, Outcome.MISSING}
    return bool(rows) and own and ran and not any(any(doubts(row)) for row in rows)


def _work(cell: Cell) -> Results:
    reason = _absent(cell)
    if reason:
        return unrun(cell, Outcome.MISSING, reason)
    work, found = cell.work, Results(outcome.SCHEMA, machine.describe(cell.device.name), made=machine.now())
    if work.validate:
        checkpoint = Path(work.checkpoint) if work.checkpoint else None
        proven = runner.validate([cell.folder], on=[cell.place], checkpoint=checkpoint, steps=work.steps)
        found = replace(found, parity=proven.parity, quality=proven.quality, lint=proven.lint)
    if work.bench:
        timed = runner.measure([cell.folder], on=[cell.place], prompt=work.prompt, tokens=work.tokens)
        found = replace(found, latency=timed.latency)
    return found


def _absent(cell: Cell) -> str | None:
    """Why this machine does not have the artifact, as a sentence."""
    path = cell.folder / manifest.FILE_NAME
    if not path.is_file():
        return f"{cell.folder} is not on this machine; workers need the plan's artifacts under the same path"
    if manifest.sha256(path) != cell.digest:
        return f"{cell.folder} on this machine is another artifact than the plan's; copy it again"
    return None
