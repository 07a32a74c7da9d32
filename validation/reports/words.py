"""Numbers and names as short readable text; measures and judges nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from runtimes.profile import Profile

NOTHING = "–"  # noqa: RUF001  an en dash, so that an empty cell does not read as a minus

_UNPRINTABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def printable(text: str) -> str:
    """`text` with every character that XML 1.0 forbids (control characters, lone surrogates) replaced."""
    return _UNPRINTABLE.sub("\ufffd", text)


def one_line(text: str) -> str:
    """Printable text without line breaks."""
    return " ".join(printable(text).split())


def worst(values: Iterable[float | None]) -> float | None:
    """The largest value; NaN if any is NaN, None if there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return math.nan if any(math.isnan(value) for value in known) else max(known)


def sig(value: float | None) -> str:
    """Two to four significant digits: "0.0123", "1.2e-5", "1,234", "NaN"."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    if 1e-3 <= abs(value) < 1000:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def fine(value: float | None) -> str:
    """Four significant digits, for numbers that differ little: "2.310"."""
    return f"{value:#.4g}" if value is not None and 1e-3 <= abs(value) < 1000 else sig(value)


def share(value: float | None) -> str:
    """A fraction as percent, rounded down so that only 1.0 reads as 100 %."""
    if value is None or not math.isfinite(value):
        return sig(value)
    return f"{math.floor(value * 1000 + 1e-9) / 10:g} %"


def portion(value: float) -> str:
    """A part of a whole as percent, to the nearest tenth, so that parts add up: "12.3 %", "<0.1 %", "0 %"."""
    return f"{100 * value:.1f} %" if value >= 0.0005 else "<0.1 %" if value else "0 %"


def change(value: float, base: float) -> str:
    """How much larger `value` is, in percent with its sign: "+0.14 %", "0 %"."""
    if not (math.isfinite(value) and math.isfinite(base) and base):
        return NOTHING
    percent = round(100 * (value / base - 1), 2)
    return f"{percent:+.3g} %" if percent else "0 %"


def profiled(profile: Profile, slowdown: float | None) -> str:
    """What profiled steps took, beside those that were not, and what to make of it."""
    beside = f", {sig(slowdown)} times an unprofiled one" if slowdown else ""
    heavy = slowdown is not None and slowdown > 2
    caution = "; much of that may be the profiler's own work, which makes small calls look dear" if heavy else ""
    steps = f"of the quickest {profile.looked_at} of {plural(profile.steps, 'profiled step')}"
    return f"{steps}; one takes {sig(profile.step_ms)} ms{beside}{caution}"


def times(count: int, name: str) -> str:
    """A count and what it counts, joined by a multiplication sign that stays on the count's line."""
    return f"{count}\u00a0× {name}"  # noqa: RUF001


def size(count: int) -> str:
    """Bytes in decimal units; a dash for 0, which means unknown."""
    if count <= 0:
        return NOTHING
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def plural(count: int, noun: str) -> str:
    """ "1 artifact", "3 artifacts"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listing(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    shown = list(names)
    rest = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {rest} more" if rest > 0 else "")
