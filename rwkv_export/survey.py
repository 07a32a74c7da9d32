"""What this machine can export and run, as data; it tries nothing out, it asks each target and runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.progress import Progress


@dataclass(frozen=True)
class TargetRow:
    """One target. `missing` says why it cannot be exported here, or is None; options map a name to its values."""

    name: str
    summary: str
    precisions: tuple[str, ...]
    prefill: bool
    options: Mapping[str, tuple[str, ...]]
    places: tuple[str, ...]
    missing: str | None


@dataclass(frozen=True)
class PlaceRow:
    """One "runtime:device". `missing` says why nothing can run there on this machine, or is None."""

    place: str
    reads: tuple[str, ...]
    missing: str | None


@dataclass(frozen=True)
class Survey:
    """Every target and every place, in name order."""

    targets: tuple[TargetRow, ...]
    places: tuple[PlaceRow, ...]


def survey(*, progress: Progress) -> Survey:
    """Ask every target file and every runtime what it needs; imports no vendor package that is not installed."""
    from exporter.quiet import quiet

    with progress("looking at targets and runtimes"), quiet():
        return Survey(_targets(), _places())


def _targets() -> tuple[TargetRow, ...]:
    from exporter import registry

    return tuple(
        TargetRow(
            name=name,
            summary=target.summary,
            precisions=tuple(target.precisions),
            prefill=target.prefill,
            options={option.name: option.values for option in target.options},
            places=(f"{target.runtime}:{target.device}", *target.also_runs),
            missing=registry.missing(name),
        )
        for name, target in sorted(registry.targets().items())
    )


def _places() -> tuple[PlaceRow, ...]:
    from runtimes import registry

    rows = []
    for name in registry.names():
        runtime = registry.load(name)
        rows += [PlaceRow(f"{name}:{device}", runtime.READS, runtime.missing(device)) for device in runtime.DEVICES]
    return tuple(rows)
