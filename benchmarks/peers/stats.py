"""From samples to tokens a second and to ratios within a round; measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peers.contract import EQUALS, LLAMA, MINE, RWKV_CPP, Bandwidth, Row


@dataclass(frozen=True)
class Spread:
    """Median and range."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """Our tokens a second over a peer's, round by round: above 1 we are faster."""

    size: str
    threads: int
    measure: str
    engine: str
    ours: str
    peer: str
    precision: str
    rounds: int
    ratio: Spread


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def tokens_of(measure: str) -> int:
    """Tokens of one sample: 1 of "decode", 64 of "prefill 64"."""
    return int(measure.partition(" ")[2] or 1)


def rates(row: Row, measure: str) -> list[float]:
    """Tokens a second of every round, each from the median of the round's samples."""
    return [tokens_of(measure) / statistics.median(seconds) for seconds in row.samples[measure]]


def measures(rows: Iterable[Row]) -> list[str]:
    """Everything that was measured, in the order it was asked."""
    return list(dict.fromkeys(measure for row in rows for measure in row.samples))


def ratios(rows: Sequence[Row]) -> list[Ratio]:
    """Every pair of equal bits of which both sides were measured, within one size and number of threads."""
    found = {(row.size, row.threads, row.engine, row.precision): row for row in rows if row.missing is None}
    made = []
    for (size, threads, engine, precision), row in found.items():
        for peer in (LLAMA, RWKV_CPP):
            other = found.get((size, threads, peer, EQUALS.get(precision, "")))
            if engine in MINE and other:
                made += [_ratio(row, other, measure) for measure in row.samples]
    return made


def _ratio(ours: Row, peer: Row, measure: str) -> Ratio:
    pairs = zip(rates(ours, measure), rates(peer, measure), strict=True)
    each = [own / other for own, other in pairs]
    mine = (ours.engine, ours.precision)
    return Ratio(ours.size, ours.threads, measure, *mine, peer.engine, peer.precision, len(each), spread(each))


def gigabytes_per_second(row: Row) -> float | None:
    """Weights read in decode at the median speed, or None where the bytes are unknown."""
    if row.bytes_per_token is None:
        return None
    return spread(rates(row, "decode")).median * row.bytes_per_token / 1e9


def limit(bandwidths: Iterable[Bandwidth], threads: int) -> float | None:
    """The best read speed measured with this many threads, GB/s."""
    return max((found.gb_per_s for found in bandwidths if found.threads == threads), default=None)
