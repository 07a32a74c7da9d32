"""The page's pictures of joined rows: drift, latency, state errors, accuracy against speed. Words are elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from runtimes.profile import Profile, Side
from validation.outcome import Outcome
from validation.reports.figure import INK, MUTED, SERIES, draw, log_axis, span_axis, tag_ends
from validation.reports.rows import Row
from validation.reports.words import one_line, plural, portion, sig, times

POINTS = 2400
"""Most points of all lines of one picture together, so that many rows do not make a large page."""

DEAREST = 12
"""Bars of one profile; what is left is one more."""

DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 2, 2)))


def colour(row: Row) -> str:
    """The row's colour, the same in every picture."""
    return SERIES[(row.number - 1) % len(SERIES)]


def dash(row: Row) -> Any:
    """The row's line style, which tells rows apart once colours repeat."""
    return DASHES[(row.number - 1) // len(SERIES) % len(DASHES)]


def drift(rows: Sequence[Row]) -> str | None:
    """Largest logit error per step, free-running bold, state-corrected dotted, with bounds; None without data."""
    shown = [row for row in rows if row.free and any(_visible(row.free.max_abs))]
    if not shown:
        return None
    bounds = {row.bound.max_abs: row.bound.name for row in shown if row.bound}
    ends = []

    def paint(axes: Any) -> None:
        every = list(bounds)
        for row in shown:
            every += _curve(axes, row, len(shown))
        log_axis(axes.yaxis, every)
        axes.set_xlim(0, max(2, *(len(row.free.max_abs) for row in shown if row.free)) - 1)
        for row in shown:
            ends.append((str(row.number), _visible(row.free.max_abs if row.free else ())[-1], colour(row)))
        for bound, name in bounds.items():
            axes.axhline(bound, color=INK, linewidth=1.2, dashes=(2, 2))
            axes.annotate(
                one_line(f"bound {name}: {sig(bound)}"), (0, bound), (4, 4), textcoords="offset points", color=INK
            )
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("step (token)")
        tag_ends(axes, ends)

    worst = ", ".join(f"row {row.number} at most {sig(row.error)}" for row in shown)
    return draw("drift", f"Line chart of the largest logit error at each step, logarithmic: {worst}.", paint)


def _curve(axes: Any, row: Row, count: int) -> list[float]:
    drawn: list[float] = []
    local = row.parity.local if row.parity else None
    for reading, width, style in ((local, 0.9, (0, (1, 2))), (row.free, 2.0, dash(row))):
        if reading is not None:
            places, values = _peaks(reading.max_abs, POINTS // (2 * count))
            steps = [reading.at[place] for place in places] if reading.at else places
            mark = "o" if len(values) < 10 else None  # a lone step has no line
            safe = [_log_safe(value) for value in values]
            axes.plot(steps, safe, color=colour(row), lw=width, ls=style, marker=mark, ms=2 * width)
            drawn += _visible(values)
    return drawn


def ecdf(rows: Sequence[Row]) -> str | None:
    """Share of generated tokens that took at most so many milliseconds, one curve a row; None without samples."""
    shown = _sampled(rows)
    if not shown:
        return None

    def paint(axes: Any) -> None:
        for row, milliseconds in shown:
            ordered = _quantiles(milliseconds, max(20, POINTS // len(shown)))
            heights = [index / (len(ordered) - 1 or 1) for index in range(len(ordered))]
            axes.step(ordered, heights, where="post", color=colour(row), lw=2, ls=dash(row))
            axes.plot([_median(row)], [0.5], "o", color=colour(row), markersize=5, clip_on=False, zorder=5)
        span_axis(axes.xaxis, [value for _, values in shown for value in values])
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.set_xlabel("milliseconds per generated token")

    return draw("ecdf", f"Cumulative distribution of decode times: {_medians(shown)}.", paint)


def timeline(rows: Sequence[Row]) -> str | None:
    """Decode time against token index, one line a row; None without samples."""
    shown = _sampled(rows)
    if not shown:
        return None

    def paint(axes: Any) -> None:
        for row, milliseconds in shown:
            axes.plot(*_envelope(milliseconds, max(40, POINTS // len(shown))), color=colour(row), lw=1.2, ls=dash(row))
        span_axis(axes.yaxis, [value for _, values in shown for value in values])
        axes.set_xlim(0, max(2, *(len(values) for _, values in shown)) - 1)
        axes.set_xlabel("generated token")
        axes.grid(axis="x", visible=False)
        tag_ends(axes, [(str(row.number), _median(row), colour(row)) for row, _ in shown])

    return draw("timeline", f"Line chart of decode time by token index: {_medians(shown)}.", paint)


def states(rows: Sequence[Row]) -> str | None:
    """The state tensors with the largest relative error of every row, against the row's bound; None without data."""
    shown = [(row, name, error) for row in rows for name, error in worst_states(row, 5 if len(rows) < 4 else 3)]
    if not any(_visible([error for _, _, error in shown])):
        return None
    starts = [row.number for row, _, _ in shown]
    places = [index + 0.6 * len(set(starts[: index + 1])) for index in range(len(shown))]  # a gap between rows

    def paint(axes: Any) -> None:
        bounds = [row.bound.state_rel for row, _, _ in shown if row.bound]
        log_axis(axes.xaxis, [*bounds, *(error for _, _, error in shown)])
        low = axes.get_xlim()[0]
        for y, (row, name, error) in zip(places, shown, strict=True):
            axes.plot([low, max(low, _log_safe(error, low))], [y, y], color=colour(row), lw=5, solid_capstyle="butt")
            text = one_line(f"{row.number} · {name} · {sig(error)}")
            axes.annotate(text, (low, y), (0, 6), textcoords="offset points", color=INK, fontsize=10)
            if row.bound:
                axes.plot([row.bound.state_rel] * 2, [y - 0.1, y + 0.2], color=INK, lw=2)
        axes.set_ylim(places[-1] + 0.5, -0.2)
        axes.set_yticks([])
        axes.set_xlabel("largest error / largest reference value, logarithmic")

    height = round(32 * (places[-1] + 0.7)) + 70
    alt = "; ".join(f"row {row.number} {name} {sig(error)}" for row, name, error in shown[:12])
    return draw("states", f"Bars of the largest relative state errors: {alt}.", paint, height=height, left=14)


def worst_states(row: Row, count: int) -> list[tuple[str, float]]:
    """(state tensor, relative error) of the free-running reading, NaN first, then the largest."""
    errors = row.free.state_rel if row.free else {}
    return sorted(errors.items(), key=lambda item: (not math.isnan(item[1]), -item[1], item[0]))[:count]


def scatter(rows: Sequence[Row]) -> str | None:
    """Logit error against decode speed; None for fewer than two rows that have both. A hollow mark did not pass.

    What was emulated or interpreted has no speed of its own and is left out.
    """
    shown = [
        (row, row.tokens_per_second, row.error)
        for row in rows
        if row.tokens_per_second and row.error and math.isfinite(row.error)
    ]
    if len(shown) < 2:
        return None

    def paint(axes: Any) -> None:
        for row, speed, error in shown:
            passed = row.parity is not None and row.parity.outcome is Outcome.PASS
            face = colour(row) if passed else "none"
            axes.plot([speed], [error], "o", ms=11, mec=colour(row), mew=2, mfc=face, clip_on=False, zorder=4)
            axes.annotate(
                str(row.number), (speed, error), (10, 6), textcoords="offset points", color=INK, weight="bold"
            )
        log_axis(axes.yaxis, [error for _, _, error in shown])
        span_axis(axes.xaxis, [speed for _, speed, _ in shown])
        axes.set_xlabel("decode, tokens per second")
        axes.annotate("faster and closer ↘", (0.99, 0.03), xycoords="axes fraction", color=MUTED, ha="right")

    alt = "; ".join(f"row {row.number} {sig(speed)} tok/s, error {sig(error)}" for row, speed, error in shown)
    return draw("scatter", f"Scatter plot of logit error against decode speed: {alt}.", paint)


def spent(row: Row) -> str | None:
    """What share of a profiled step each kernel, operator and overhead took; None without a profile.

    A bar in the row's colour is inside a delegate, a plain one the runtime's own kernel, a thin one overhead.
    """
    if not row.profile:
        return None
    bars = _bars(row.profile)
    colours = {Side.DELEGATE: colour(row), Side.RUNTIME: INK, Side.OVERHEAD: MUTED}

    def paint(axes: Any) -> None:
        for y, (text, side, share) in enumerate(bars):
            width = 2 if side is Side.OVERHEAD else 5
            axes.plot([0, share], [y, y], color=colours[side], lw=width, solid_capstyle="butt")
            axes.annotate(text, (0, y), (0, 6), textcoords="offset points", color=INK, fontsize=10)
        axes.set_xlim(0, max(share for _, _, share in bars) * 1.02)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}".replace("%", " %"))
        axes.set_ylim(len(bars) - 0.5, -0.8)
        axes.set_yticks([])
        axes.set_xlabel("share of the profiled step")

    alt = "; ".join(text for text, _, _ in bars)
    height = 32 * len(bars) + 80
    return draw(f"spent{row.number}", f"Bars of where a token's time goes: {alt}.", paint, height=height, left=14)


def _bars(profile: Profile) -> list[tuple[str, Side, float]]:
    """Label, side and share of the dearest rows, and of all others as one."""
    shown, several = profile.dearest(DEAREST), len(profile.delegates) > 1
    found = []
    for part in shown:
        name = part.name if part.side is Side.OVERHEAD else times(part.calls, part.name)
        unit = f", {part.unit}" if several and part.unit in profile.delegates else ""
        found.append((one_line(f"{name}{unit} · {portion(part.share)}"), part.side, part.share))
    if others := profile.spent[len(shown) :]:
        share = sum(part.share for part in others)
        found.append((f"{plural(len(others), 'other')} · {portion(share)}", Side.OVERHEAD, share))
    return found


def swatch(row: Row) -> str:
    """The row's line as it looks in the pictures, for legends."""
    pattern = dash(row)
    dashes = "" if pattern == "-" else f' stroke-dasharray="{" ".join(str(part * 2) for part in pattern[1])}"'
    number = (row.number - 1) % len(SERIES) + 1
    line = f'<line x1="1" y1="6" x2="27" y2="6" stroke="var(--c{number})" stroke-width="4"{dashes}/>'
    return f'<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true">{line}</svg>'


def _sampled(rows: Sequence[Row]) -> list[tuple[Row, list[float]]]:
    found = []
    for row in rows:
        seconds = row.decode.seconds if row.decode else ()
        milliseconds = [second * 1000 for second in seconds if math.isfinite(second)]
        if milliseconds:
            found.append((row, milliseconds))
    return found


def _medians(shown: Sequence[tuple[Row, list[float]]]) -> str:
    return ", ".join(f"row {row.number} median {sig(_median(row))} ms" for row, _ in shown)


def _median(row: Row) -> float:
    """In milliseconds, as the tables say it."""
    return row.decode.median_ms if row.decode else math.nan


def _visible(values: Sequence[float]) -> list[float]:
    return [value for value in values if value > 0 and math.isfinite(value)]


def _log_safe(value: float, otherwise: float = math.nan) -> float:
    return value if value > 0 and math.isfinite(value) else otherwise


def _peaks(values: Sequence[float], most: int) -> tuple[list[int], list[float]]:
    """Step and value of the largest value of each of at most `most` stretches."""
    stride = math.ceil(len(values) / max(1, most)) or 1
    steps = [
        max(range(start, min(start + stride, len(values))), key=lambda step: values[step])
        for start in range(0, len(values), stride)
    ]
    return steps, [values[step] for step in steps]


def _envelope(values: Sequence[float], most: int) -> tuple[list[int], list[float]]:
    """Index and value of the smallest and the largest value of each stretch, in order of index."""
    stride = math.ceil(len(values) / (most // 2))
    if stride <= 2:
        return list(range(len(values))), list(values)
    kept: list[int] = []
    for start in range(0, len(values), stride):
        stretch = range(start, min(start + stride, len(values)))
        kept += sorted({min(stretch, key=lambda i: values[i]), max(stretch, key=lambda i: values[i])})
    return kept, [values[index] for index in kept]


def _quantiles(values: Sequence[float], most: int) -> list[float]:
    ordered = sorted(values)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(index * (len(ordered) - 1) / (most - 1))] for index in range(most)]
