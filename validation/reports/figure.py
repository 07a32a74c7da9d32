"""One matplotlib picture as inline SVG whose colours and fonts come from the page's CSS; knows nothing of results."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from validation.reports.words import printable, sig

WIDTH = 560
"""Of every picture in user units; the page scales it."""

INK, MUTED, GRID = "#0f0001", "#0f0002", "#0f0003"
SERIES = tuple(f"#0f001{index}" for index in range(1, 9))
_CSS = {INK: "--ink", MUTED: "--muted", GRID: "--rule"}
_CSS |= {colour: f"--c{index}" for index, colour in enumerate(SERIES, start=1)}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rwkv-export",
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "font.size": 11,
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.labelpad": 9,
    "axes.xmargin": 0.0,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}


def draw(name: str, alt: str, paint: Callable[[Any], None], *, height: int = 320, left: int = 56) -> str:
    """An `<svg>` element with `alt` as its accessible name; `paint` fills the matplotlib Axes. Same input, same bytes.

    name: prefix of every id inside, unique on the page; left: room for the labels of the y axis, in user units
    """
    import matplotlib as mpl
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context("default", after_reset=True), mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)  # one user unit is one pixel
        figure.patch.set_alpha(0)
        box = (left / WIDTH, 56 / height, (WIDTH - left - 34) / WIDTH, (height - 70) / height)
        paint(figure.add_axes(box))
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(name, printable(alt), drawn.getvalue(), height)


def _inline(name: str, alt: str, svg: str, height: int) -> str:
    """Keep the drawing only: no prolog, no global style, no unused ids; short numbers; colours as CSS variables."""
    body = svg[svg.index('<g id="figure_1">') : svg.rindex("</svg>")].replace("xlink:href", "href")
    used = set(re.findall(r"(?:url\(#|href=\"#)([\w.]+)", body))

    def clean(tag: re.Match[str]) -> str:
        text = re.sub(r' id="([\w.]+)"', lambda own: f' id="{name}-{own[1]}"' if own[1] in used else "", tag[0])
        text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", text)
        text = re.sub(r" font-family: [^;\"]*;?", "", text)
        text = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", text)
        text = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", text)
        text = re.sub(r"\s+", " ", text)
        for colour, variable in _CSS.items():
            text = text.replace(colour, f"var({variable})")
        return text

    body = re.sub(r"<[^>]*>\s*(?=<)|<[^>]*>", clean, body)
    title = alt.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">{body}</svg>'


def log_axis(axis: Any, values: Iterable[float]) -> None:
    """A log axis over whole decades that hold the positive finite `values`, one label a decade."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    logs = [math.log10(value) for value in values if value > 0 and math.isfinite(value)] or [0.0]
    low, high = math.floor(min(logs) - 0.05), math.ceil(max(logs) + 0.05)
    step = max(1, math.ceil((high - low) / 7))
    _scale(axis, "log", (10.0**low, 10.0**high))
    axis.set_major_locator(FixedLocator([10.0**power for power in range(low, high + 1, step)]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: sig(value)))


def span_axis(axis: Any, values: Sequence[float]) -> None:
    """Linear where `values` lie within a factor of four, else logarithmic with ticks at 1, 2 and 5."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    low, high = min(values), max(values)
    if low > 0 and high / low > 4:
        limits = (low / 1.15, high * 1.15)
        ticks = [lead * 10.0**power for power in range(-9, 9) for lead in (1, 2, 5)]
        _scale(axis, "log", limits)
        axis.set_major_locator(FixedLocator([tick for tick in ticks if limits[0] <= tick <= limits[1]]))
    else:
        room = (high - low) * 0.08 or high * 0.1 or 1.0
        _scale(axis, "linear", (low - room, high + room))
        axis.set_major_locator(MaxNLocator(6))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: sig(value)))


def _scale(axis: Any, scale: str, limits: tuple[float, float]) -> None:
    vertical = axis.axis_name == "y"
    (axis.axes.set_yscale if vertical else axis.axes.set_xscale)(scale)
    (axis.axes.set_ylim if vertical else axis.axes.set_xlim)(*limits)


def tag_ends(axes: Any, ends: Sequence[tuple[str, float, str]], *, apart: float = 17.0) -> None:
    """Write each (text, y, colour) right of the axes at height y, moved `apart` (closer where there are many)."""
    low, high = axes.transAxes.transform([(0, 0), (0, 1)])[:, 1]
    apart = min(apart, (high - low) / len(ends))
    placed: list[float] = []
    order = sorted(ends, key=lambda end: end[1])
    for _, y, _ in order:
        wanted = float(axes.transData.transform((axes.get_xlim()[0], y))[1])
        placed.append(max(wanted, placed[-1] + apart) if placed else max(wanted, low))
    for index in reversed(range(len(placed))):
        ceiling = placed[index + 1] - apart if index + 1 < len(placed) else high
        placed[index] = min(placed[index], ceiling)
    for (text, _, colour), height in zip(order, placed, strict=True):
        axes.annotate(
            text,
            (1, (height - low) / (high - low)),
            xycoords="axes fraction",
            xytext=(7, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            weight="bold",
            annotation_clip=False,
        )
