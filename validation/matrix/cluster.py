"""Runs cells on the workers of a Dask cluster, each on one that advertises the device as a resource."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from runtimes.errors import Missing, WrongCall
from validation.matrix.plan import Cell

PATIENCE = 60.0
"""Seconds that a device may be without any worker before its cells are given up."""
LOOK = 0.5
"""Seconds between two looks at the cluster."""


def run_on_cluster(
    cells: Sequence[Cell],
    run: Callable[[Cell], str],
    retries: int,
    *,
    scheduler: str,
    patience: float = PATIENCE,
) -> Iterator[tuple[Cell, str | Exception]]:
    """Each cell with what `run` returned for it, or an exception, in the order in which they finish.

    scheduler: address, such as tcp://10.0.0.5:8786
    patience:  seconds to wait for a worker to come, or to come back, with what a cell needs

    Where a worker dies, Dask gives its cell to another, as often as the cluster's `allowed-failures` says. Raises
    WrongCall for a device that names no resource, and Missing without Dask or where nobody answers at `scheduler`.
    """
    for cell in cells:
        if not cell.device.needs:
            raise WrongCall(
                f"device {cell.device.name!r} does not say what a worker needs",
                hint='write needs = "NAME" in its [[device]] and start its worker with --resources NAME=1',
            )
    client = _connect(scheduler)
    try:
        yield from _collect(client, cells, run, retries, patience)
    finally:
        client.close()


def _connect(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise Missing("running on a cluster needs Dask", hint="pip install 'rwkv-export[cluster]'") from error
    try:
        return Client(scheduler, timeout=5, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TimeoutError) as error:
        raise Missing(
            f"no Dask scheduler answers at {scheduler}: {error or type(error).__name__}",
            hint="start one with `dask scheduler`, and pass the address it prints",
        ) from error


def _collect(
    client: Any, cells: Sequence[Cell], run: Callable[[Cell], str], retries: int, patience: float
) -> Iterator[tuple[Cell, str | Exception]]:
    """Hand every cell out once, whole and unshared, and take the results as they come."""
    waiting = {
        cell.key: (cell, client.submit(run, cell, key=cell.key, resources={cell.device.needs: 1}, retries=retries))
        for cell in cells
    }
    seen: dict[str, float] = {}
    while waiting:
        done = [key for key, (_, future) in waiting.items() if future.done()]
        for key in done:
            cell, future = waiting.pop(key)
            yield cell, _outcome(future)
        for key in _abandoned(client, waiting, seen, patience):
            cell, future = waiting.pop(key)
            future.cancel()
            yield cell, Missing(f"no worker with the resource {cell.device.needs!r} was there for {patience:.0f} s")
        if waiting and not done:
            time.sleep(LOOK)


def _outcome(future: Any) -> str | Exception:
    error = future.exception()
    return str(future.result()) if error is None else error


def _abandoned(client: Any, waiting: dict[str, tuple[Cell, Any]], seen: dict[str, float], patience: float) -> list[str]:
    """Cells whose device no worker has had for `patience` seconds; `seen` keeps when one was last there."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    present = {name for worker in workers for name in worker["resources"]}
    now = time.monotonic()
    for cell, _ in waiting.values():
        if cell.device.needs in present or cell.device.needs not in seen:
            seen[cell.device.needs] = now
    return [key for key, (cell, _) in waiting.items() if now - seen[cell.device.needs] > patience]
