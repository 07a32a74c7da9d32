"""Adds to a timing where a token's time goes; by a session apart from the timed one, because profiling slows."""

from __future__ import annotations

from dataclasses import replace

from exporter.progress import Progress, silent
from runtimes.contract import Artifact
from runtimes.errors import Missing
from runtimes.profile import profile
from validation.outcome import Latency


def profiled(row: Latency, artifact: Artifact, *, progress: Progress = silent) -> Latency:
    """A row that was timed, with its profile, or with a warning that says why there is none."""
    place = row.identity.requested
    if row.identity.evidence != "run":
        return _without(row, f"no profile for {place}: its times are not those of the device it stands for")
    try:
        with progress(f"profiling {row.identity.artifact} on {place}"):
            return replace(row, profile=profile(artifact, place))
    except Missing as error:
        return _without(row, error.message)


def _without(row: Latency, why: str) -> Latency:
    return replace(row, warnings=(*row.warnings, why))
