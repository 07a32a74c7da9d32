"""What a run says: medians, slopes, crossings, the printed table; it measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression, median
from typing import Any

from rich.table import Table

from flat.sides import Window

FACTORS = (1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Run:
    """The windows of both sides at the same positions.

    busy: share of the processors, 0 to 1, that other programs used before or after, whichever was more
    """

    rwkv: list[Window]
    transformer: list[Window]
    busy: float

    @property
    def positions(self) -> list[int]:
        return [window.position for window in self.rwkv]


def medians(windows: Sequence[Window]) -> list[float]:
    """Milliseconds a token, position by position."""
    return [median(window.samples_ms) for window in windows]


def megabytes(windows: Sequence[Window]) -> list[float]:
    """State or cache, position by position."""
    return [window.carried_bytes / 1e6 for window in windows]


def summary(run: Run) -> dict[str, Any]:
    """The figures to publish. Ratios are of the medians at one position: both sides were timed within seconds."""
    rwkv, transformer = medians(run.rwkv), medians(run.transformer)
    ratios = [theirs / ours for ours, theirs in zip(rwkv, transformer, strict=True)]
    return {
        "rwkv_ms": median(rwkv),
        "rwkv_ms_per_1000_positions": 1000 * linear_regression(run.positions, rwkv).slope,
        "transformer_ms_per_1000_positions": 1000 * linear_regression(run.positions, transformer).slope,
        "slower_from": {str(factor): above_from(run.positions, ratios, factor) for factor in FACTORS},
        "at_the_end": {
            "position": run.positions[-1],
            "time_ratio": ratios[-1],
            "carried_ratio": run.transformer[-1].carried_bytes / run.rwkv[-1].carried_bytes,
        },
    }


def above_from(positions: Sequence[int], values: Sequence[float], bound: float) -> int | None:
    """The position from which on every value is above `bound`; None where the last is not."""
    found = None
    for position, value in zip(reversed(positions), reversed(values), strict=True):
        if value <= bound:
            break
        found = position
    return found


def table(run: Run) -> Table:
    """A row at 0, 1, 2, 4, 8, ... times the distance between positions, and at the end."""
    made = Table("position", title="one token", title_justify="left")
    for head in ("RWKV-7", "transformer", "ratio", "state", "KV cache", "RSS of RWKV-7", "RSS of transformer"):
        made.add_column(head, justify="right")
    pairs = list(zip(run.rwkv, run.transformer, strict=True))
    for index, (ours, theirs) in enumerate(pairs):
        if index & (index - 1) == 0 or index == len(pairs) - 1:
            one, other = median(ours.samples_ms), median(theirs.samples_ms)
            sizes = (ours.carried_bytes, theirs.carried_bytes, ours.rss_bytes, theirs.rss_bytes)
            times = (f"{one:.2f} ms", f"{other:.2f} ms", f"{other / one:.2f}")
            made.add_row(f"{ours.position:,}", *times, *(f"{size / 1e6:.1f} MB" for size in sizes))
    return made


def sentences(run: Run) -> list[str]:
    """The summary in words."""
    facts, end = summary(run), run.positions[-1]
    said = [
        f"RWKV-7: {facts['rwkv_ms']:.2f} ms a token, and {facts['rwkv_ms_per_1000_positions']:+.4f} ms for every "
        f"1,000 positions; transformer: {facts['transformer_ms_per_1000_positions']:+.4f} ms.",
        *(_crossing(factor, position, end) for factor, position in facts["slower_from"].items()),
    ]
    last = facts["at_the_end"]
    return [
        *said,
        f"At {end:,} the transformer carries {last['carried_ratio']:,.0f} times RWKV-7's bytes, and a token takes "
        f"{last['time_ratio']:.2f} times as long.",
    ]


def _crossing(factor: str, position: int | None, end: int) -> str:
    where = f"never up to {end:,}" if position is None else f"from position {position:,} on"
    return f"The transformer's token takes more than {factor} times RWKV-7's: {where}."
