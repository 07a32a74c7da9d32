"""What is odd about time samples, as sentences that say what to do about it; it measures nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from validation.outcome import Method

FEW = 30
SPREAD = 2.0
"""p95 over median from which a run is called uneven."""
RISE = 1.2
"""Median of the last quarter over that of the first, from which a run is called rising."""
CORRELATION = 0.4
"""Least rank correlation of time and position in a rising run."""
APART = 5.0
"""Ashman's D from which samples are two groups: a normal distribution cut in two has 2.7, a uniform one 3.5."""
LEAST_SHARE = 0.15
GAP = (1.15, 3.0)
"""Ratio of two groups' means that cores or clocks explain; beyond it the process was interrupted."""
STALL = 1.5
"""Times the median from which a sample counts as a stall."""
STALLS, REGULAR = 5, 0.1
"""Least number of stalls, and most spread of their distances over the mean, of a run that stalls periodically."""
STOLEN = 0.02
"""Share of processor time taken by a virtual machine's host that is worth a word."""
COARSE = 0.01
"""Share of a step that the clock's own step, or reading it, may take unmentioned."""
BUSY = 0.25
"""Share of the machine that other programs may use unmentioned."""

UNSETTLED = "decode times had not settled when warm-up ended: the first samples may be slow; use more tokens"

Times = NDArray[np.float64]


def diagnose(seconds: Sequence[float]) -> list[str]:
    """Warnings about decode samples in the order they were taken: too few, rising, stalling, uneven, in two groups."""
    times = np.asarray(seconds, np.float64)
    if not times.all():
        return ["some calls took 0 s: the clock of this runtime is too coarse for such a small model"]
    found = []
    if len(times) < FEW:
        found.append(f"{len(times)} decode samples are too few for a p99; use --tokens {FEW} or more")
    if len(times) >= 8:
        found += [
            sentence
            for sentence in [_rising(times) or _periodic(times) or _groups(times) or _uneven(times)]
            if sentence
        ]
    return found


def background(share: float) -> list[str]:
    """A warning where other programs used `share` (0 to 1) of the processors before the run began."""
    if share <= BUSY:
        return []
    return [f"other programs used {share:.0%} of the processors before the run; close them and measure again"]


def surroundings(median_s: float, method: Method) -> list[str]:
    """Warnings about what samples of `median_s` were taken with: a clock too coarse, a processor shared."""
    found = []
    if median_s > 0 and (share := max(method.clock_step_s, method.clock_read_s) / median_s) > COARSE:
        found.append(f"the clock is good for {share:.1%} of a step only; trust longer ones, such as prompts")
    if method.stolen is not None and method.stolen > STOLEN:
        found.append(
            f"the host of this virtual machine gave {method.stolen:.0%} of its processor time to others; "
            "measure again, or on a machine of your own"
        )
    return found


def _rising(times: Times) -> str | None:
    from scipy.stats import spearmanr

    quarter = len(times) // 4
    rise = float(np.median(times[-quarter:]) / np.median(times[:quarter]))
    if rise < RISE or float(spearmanr(np.arange(len(times)), times).statistic) < CORRELATION:
        return None
    return (
        f"p95 is {_spread(times):.1f}x the median and decode slows to {rise:.1f}x over the run: probably throttling; "
        "let the machine cool down and measure again"
    )


def _periodic(times: Times) -> str | None:
    """Stalls at equal distances, in tokens or in time."""
    slow = np.flatnonzero(times > STALL * np.median(times))
    starts = slow[np.diff(slow, prepend=-2) > 1]  # one stall may last several samples
    if len(starts) < STALLS:
        return None
    tokens, seconds = np.diff(starts), np.diff(np.cumsum(times)[starts])
    if min(gaps.std() / gaps.mean() for gaps in (tokens, seconds)) > REGULAR:
        return None
    return (
        f"every {np.median(tokens):.0f} tokens, or {1000 * np.median(seconds):.3g} ms, one takes "
        f"{np.median(times[starts]) / np.median(times):.1f}x the median: something runs on a timer, "
        "such as a monitor, a display or a log; close it and measure again"
    )


def _groups(times: Times) -> str | None:
    """Otsu's cut: the split of the sorted samples with the largest variance between its two sides."""
    ordered, count = np.sort(times), len(times)
    least = max(3, math.ceil(LEAST_SHARE * count))
    cuts = np.arange(least, count - least + 1)
    below = np.cumsum(ordered)[cuts - 1]
    gaps = (ordered.sum() - below) / (count - cuts) - below / cuts
    cut = int(cuts[np.argmax(cuts * (count - cuts) * gaps**2)])
    fast, slow = ordered[:cut], ordered[cut:]
    distance, spread = slow.mean() - fast.mean(), math.hypot(fast.std(), slow.std())
    if not GAP[0] <= slow.mean() / fast.mean() <= GAP[1] or math.sqrt(2) * distance < APART * spread:
        return None
    return (
        f"decode times fall into two groups, {1000 * fast.mean():.3g} ms and {1000 * slow.mean():.3g} ms "
        f"({len(slow) / count:.0%} of the samples): probably cores of two speeds or a changing clock; "
        "pin the process to some cores (taskset) and measure again"
    )


def _uneven(times: Times) -> str | None:
    if _spread(times) < SPREAD:
        return None
    return f"p95 is {_spread(times):.1f}x the median: something else uses this machine; close it and measure again"


def _spread(times: Times) -> float:
    return float(np.percentile(times, 95) / np.median(times))
