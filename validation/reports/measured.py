"""How decode was measured and what it cost beside time, in words: bandwidth, energy, warm-up, clock, harness."""

from __future__ import annotations

from collections.abc import Sequence

from validation.outcome import Energy, Latency
from validation.reports.rows import Row
from validation.reports.words import NOTHING, portion, sig, size

HEADER = (
    "warm-up",
    "between calls",
    "clock",
    "stolen",
    "reads a token",
    "memory gives",
    "taken of that",
    "energy a token",
)


def bandwidth(timing: Latency) -> str:
    """Share of the memory's speed that decode takes, "" where unknown."""
    if timing.bandwidth is None:
        return ""
    return f"{100 * timing.bandwidth:.0f} % of memory speed" if timing.bandwidth <= 1 else "from caches"


def joules(energy: Energy | None) -> str:
    """Energy of a token, "" where unknown."""
    if not energy or energy.joules is None:
        return ""
    return f"{sig(energy.joules)} J" if energy.joules >= 0.1 else f"{sig(1000 * energy.joules)} mJ"


def costs(row: Row) -> tuple[str, ...]:
    """What stands below the speed of a row: percentiles, the share of the memory's speed, energy."""
    if not row.decode or not row.latency:
        return ()
    samples, timing, energy = row.decode, row.latency, joules(row.latency.energy)
    times = f"{sig(samples.median_ms)} ms", f"p90\u00a0{sig(samples.p90_ms)}, p99\u00a0{sig(samples.p99_ms)}"
    return tuple(text for text in (*times, bandwidth(timing), f"{energy} a token" if energy else "") if text)


def table(rows: Sequence[Row]) -> list[tuple[Row, tuple[str, ...]]]:
    """The cells of HEADER for every row whose method was recorded."""
    return [(row, _cells(row.latency)) for row in rows if row.latency and row.latency.method]


def reasons(rows: Sequence[Row]) -> list[str]:
    """Why energy is not known, and what counted it where it is, each once."""
    told = [row.latency.energy for row in rows if row.latency and row.latency.energy]
    return list(dict.fromkeys(f"Energy: {energy.source or energy.reason}." for energy in told))


def _cells(timing: Latency) -> tuple[str, ...]:
    method, traffic = timing.method, timing.traffic
    if not method:
        return ()
    share = timing.bandwidth
    return (
        f"{method.warm_up_steps} steps{'' if method.settled else ', not settled'}",
        portion(timing.harness) if timing.harness is not None else NOTHING,
        f"{sig(1e9 * max(method.clock_step_s, method.clock_read_s))} ns",
        portion(method.stolen) if method.stolen is not None else NOTHING,
        size(traffic.bytes_per_token) if traffic else NOTHING,
        f"{sig(traffic.limit_gb_per_s)} GB/s, {traffic.threads} threads" if traffic else NOTHING,
        NOTHING if share is None else portion(share) if share <= 1 else f"{sig(share)} times, from caches",
        joules(timing.energy) or NOTHING,
    )
