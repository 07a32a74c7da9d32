"""The picture of a run: time per token and memory carried, against position; it computes nothing."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RWKV, DECODER, MUTED = "#b3361b", "#2a5d9f", "#666666"
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.parse_math": False,
}


def draw(
    path: Path,
    positions: Sequence[int],
    *,
    milliseconds: tuple[Sequence[float], Sequence[float]],
    megabytes: tuple[Sequence[float], Sequence[float]],
    note: str,
) -> None:
    """Write a PNG; every pair is RWKV's values, then the transformer's, one a position."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _panel(left, positions, milliseconds, "Time per token, ms", "{:.1f} ms")
        _panel(right, positions, megabytes, "Memory carried to the next token, MB", "{:.1f} MB")
        figure.supxlabel(note, fontsize=9, color=MUTED)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            figure.savefig(temporary, format="png", dpi=150)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _panel(
    axes: Any, positions: Sequence[int], values: tuple[Sequence[float], Sequence[float]], title: str, form: str
) -> None:
    axes.set_title(title)
    axes.set_xlabel("position, tokens", color=MUTED)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0)
    for line, colour, name in zip(values, (RWKV, DECODER), ("RWKV-7", "transformer"), strict=True):
        axes.plot(positions, line, color=colour, linewidth=1.8)
        text = f" {name}\n {form.format(line[-1])}"
        axes.annotate(text, (positions[-1], line[-1]), color=colour, va="center", annotation_clip=False)
    axes.set_ylim(bottom=0)
