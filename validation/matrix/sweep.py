"""Goes through the cells of a plan, keeps each result as a file of its own, and goes on where it was."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from exporter.progress import Progress, silent
from runtimes.errors import Missing, WrongCall
from runtimes.schema import SchemaError, from_plain
from validation import outcome
from validation.matrix import cell as cells
from validation.matrix import plan as plans
from validation.matrix.cluster import run_on_cluster
from validation.matrix.local import run_here
from validation.matrix.plan import Cell
from validation.outcome import Outcome, Results


def sweep(
    plan: Path,
    folder: Path,
    *,
    scheduler: str | None = None,
    retries: int = 2,
    again: bool = False,
    progress: Progress = silent,
) -> tuple[Results, ...]:
    """Run every cell of `plan` that has no settled result in `folder` yet; returns the results of all, in plan order.

    folder:    gets one results file a cell, written whole as soon as the cell is done
    scheduler: of a Dask cluster; None for this machine alone, one cell after another
    retries:   further tries of a cell that crashed or whose worker died; a failed comparison is a result
    again:     run also what is settled

    Raises WrongCall as `plans.read` does, and what `run_on_cluster` raises.
    """
    wanted = plans.read(plan)
    folder.mkdir(parents=True, exist_ok=True)
    found = {} if again else {cell.key: kept for cell in wanted if (kept := _kept(cell, folder))}
    due = [cell for cell in wanted if cell.key not in found]
    run = partial(run_on_cluster, scheduler=scheduler) if scheduler else run_here
    with progress(f"{len(due)} of {len(wanted)} cells to run", total=len(due)) as advance:
        for cell, text in run(due, cells.run, retries):
            found[cell.key] = _understood(cell, text)
            outcome.write(found[cell.key], _file(cell, folder))
            advance(1)
    return tuple(found[cell.key] for cell in wanted)


def _file(cell: Cell, folder: Path) -> Path:
    return folder / f"{cell.key}.json"


def _kept(cell: Cell, folder: Path) -> Results | None:
    """The settled result of an earlier run; None where there is none, or none of this very cell that can be read."""
    try:
        results = outcome.read(_file(cell, folder))
    except WrongCall:
        return None
    return results if cells.settled(results, cell) else None


def _understood(cell: Cell, result: str | Exception) -> Results:
    if isinstance(result, Missing):
        return cells.unrun(cell, Outcome.MISSING, result.message)
    if isinstance(result, Exception):
        return cells.unrun(cell, Outcome.ERROR, f"{type(result).__name__}: {result}")
    try:
        return from_plain(Results, json.loads(result))
    except (SchemaError, ValueError) as error:
        return cells.unrun(cell, Outcome.ERROR, f"the worker has another version of rwkv-export: {error}")
