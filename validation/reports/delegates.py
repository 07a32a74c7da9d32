"""What delegates took of each artifact, in words, from what its manifest counted; a share of nothing is unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtimes.manifest import Coverage
from validation.reports.rows import Row
from validation.reports.words import NOTHING, listing, share, size, times

NAMED = 6
"""Operators left outside that are named."""


@dataclass(frozen=True)
class Taken:
    """One artifact's line; every field is ready to be shown.

    calls:   of each delegate; "none" where none took anything
    macs, weights, operators: what is inside, of all: "98.3 %"; the second of each pair says of how much
    outside: operators by name, the most frequent first
    why:     the reasons known, "" for none
    """

    row: Row
    calls: str
    macs: tuple[str, str]
    weights: tuple[str, str]
    operators: tuple[str, str]
    outside: str
    why: str


def taken(rows: Sequence[Row]) -> list[Taken]:
    """A line for every artifact whose format has delegates, also where none took anything; one for all its places."""
    found: dict[tuple[str, str], Taken] = {}
    for row in rows:
        if row.identity.coverage:
            found.setdefault((row.identity.artifact, row.machine.cpu), _taken(row, row.identity.coverage))
    return list(found.values())


def _taken(row: Row, counted: Coverage) -> Taken:
    inside, outside = sum(counted.inside.values()), sum(counted.outside.values())
    weights = counted.weights_inside + counted.weights_outside
    return Taken(
        row=row,
        calls=_counts(counted.delegates, len(counted.delegates)) or "none",
        macs=(
            _share(counted.macs_inside, counted.macs_outside),
            f"of {_short(counted.macs_inside + counted.macs_outside)}",
        ),
        weights=(_share(counted.weights_inside, counted.weights_outside), f"of {size(weights)}"),
        operators=(_share(inside, outside), f"{inside} of {inside + outside}"),
        outside=_counts(counted.outside, NAMED) or NOTHING,
        why=_reasons(counted.why),
    )


def _reasons(why: Mapping[str, str]) -> str:
    """Each reason once, with the operators it is for."""
    names: dict[str, list[str]] = {}
    for operator, reason in why.items():
        names.setdefault(reason, []).append(operator)
    return "; ".join(f"{listing(operators)}: {reason}" for reason, operators in names.items())


def _share(inside: int, outside: int) -> str:
    return share(inside / (inside + outside)) if inside + outside else NOTHING


def _counts(counts: Mapping[str, int], most: int) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return listing((times(count, name) for name, count in ordered), most)


def _short(count: int) -> str:
    """A large number with its unit: "1.86 M"."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return str(count)
