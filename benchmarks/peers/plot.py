"""Draws the speeds as bars with the ratios written over ours; measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from peers.contract import DIRECT, FUSED, LLAMA, MINE, OURS, PAIRS, PTE, RWKV_CPP, Row, called
from peers.stats import Spread, measures, rates, ratios, spread

COLOURS = {
    OURS: "#2b6cb0",
    FUSED: "#1a365d",
    PTE: "#d69e2e",
    DIRECT: "#975a16",
    LLAMA: "#b8bfc9",
    RWKV_CPP: "#dde1e7",
}
INK = "#2d3440"
WIDTH = 0.86 / len(COLOURS)  # of a bar; the rest of 1 lies between presets


def draw(rows: Sequence[Row], path: Path) -> None:
    """One panel a measure, size and number of threads; whiskers are the range over the rounds."""
    asked = measures(rows)
    blocks = list(dict.fromkeys((row.size, row.threads) for row in rows))
    figure = Figure(
        figsize=(1.2 + 3.1 * len(blocks), 0.9 + 2.3 * len(asked)), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)
    )
    panels = figure.subplots(len(asked), len(blocks), squeeze=False)
    for line, measure in zip(panels, asked, strict=True):
        for panel, (size, threads) in zip(line, blocks, strict=True):
            _panel(panel, measure, [row for row in rows if (row.size, row.threads) == (size, threads)])
            panel.set_title(f"{measure}, {size}, {threads} thread{'s' * (threads > 1)}", fontsize=9, color=INK)
        line[0].set_ylabel("tokens a second", fontsize=8, color=INK)
    handles, labels = max((panel.get_legend_handles_labels() for panel in panels.flat), key=lambda found: len(found[1]))
    if labels:
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    figure.savefig(path, dpi=160, facecolor="white")


def _panel(panel: Axes, measure: str, rows: Sequence[Row]) -> None:
    present = {(row.engine, row.precision): row for row in rows if row.missing is None}
    presets = [row.precision for row in rows if row.engine == OURS]
    engines = (*MINE, LLAMA, RWKV_CPP)
    for offset, engine in enumerate(engines):
        found: list[tuple[float, Spread]] = []
        for place, preset in enumerate(presets):
            if row := present.get((engine, called(engine, preset))):
                found.append((place + _shift(offset), spread(rates(row, measure))))
        if found:
            places, heights = [place for place, _ in found], [speed.median for _, speed in found]
            below = [speed.median - speed.low for _, speed in found]
            above = [speed.high - speed.median for _, speed in found]
            style = {"ecolor": INK, "elinewidth": 0.8, "capsize": 2}
            panel.bar(
                places, heights, WIDTH * 0.92, yerr=(below, above), color=COLOURS[engine], label=engine, error_kw=style
            )
    for ratio in ratios(rows):
        if ratio.measure == measure and ratio.peer == LLAMA:
            ours = spread(rates(present[ratio.engine, ratio.ours], measure)).high
            middle = [called(ratio.engine, preset) for preset in presets].index(ratio.ours)
            over = middle + _shift(engines.index(ratio.engine))
            label = f"{ratio.ratio.median:.2f}×"  # noqa: RUF001
            panel.annotate(label, (over, ours), (0, 3), textcoords="offset points", ha="center", fontsize=7, color=INK)
    panel.set_xticks(range(len(presets)), [f"{preset} / {PAIRS[preset]}" for preset in presets], fontsize=8)
    panel.margins(y=0.18)
    panel.tick_params(length=0, labelsize=8, colors=INK)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.grid(axis="y", color="#eceff3", linewidth=0.8)
    panel.set_axisbelow(True)


def _shift(engine: int) -> float:
    """From the middle of a preset's bars to that of one engine's."""
    return (engine - (len(COLOURS) - 1) / 2) * WIDTH
