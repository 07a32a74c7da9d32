"""Sensitivities as one self-contained HTML page, and what it says in words; it measures and recommends nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from validation.reports.figure import INK, MUTED, SERIES, draw
from validation.reports.words import change, fine, one_line, plural, portion, printable, share, sig, size
from validation.sensitivity_results import ALL, KEPT, Sensitivity

DEAREST = 16
"""Bars of single matrices."""

COLUMNS = 40
"""Layers that the map has room for; of a deeper model the dearest bars and the table say it."""


def render(document: Sensitivity) -> str:
    """The page; identical input gives identical text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"sig": sig, "fine": fine, "share": share, "size": size, "portion": portion}
    pictures = [("The dearest matrices", dearest(document)), ("By layer and matrix", by_layer(document))]
    page = environment.get_template("sensitivity.html.j2").render(
        css=Markup((here / "report.css").read_text(encoding="utf-8")),  # noqa: S704  our own file
        document=document,
        headline=headline(document),
        advice=advice(document),
        pictures=[(title, Markup(svg)) for title, svg in pictures if svg],  # noqa: S704  drawn by us, escaped there
        everything=document.find(ALL),
        total=sum(each.kl_mean for each in document.matrices),
        growth=lambda effect: change(effect.perplexity, document.perplexity),
    )
    return printable(page)


def headline(document: Sensitivity) -> str:
    """What quantising everything costs, and what costs the most of it."""
    subject, every, matrices = document.subject, document.find(ALL), document.matrices
    if every is None or not matrices:
        return f"{subject.model} as {subject.target} {subject.precision}: not measured to the end"
    what = f"{subject.model} as {subject.target} {subject.precision} loses {sig(every.kl_mean)} nats a token"
    total = sum(each.kl_mean for each in matrices)
    return f"{what}, {portion(matrices[0].kl_mean / total)} of it by {matrices[0].name}" if total else what


def advice(document: Sensitivity) -> str:
    """What keeping the recommended matrices brings and costs, as it was measured."""
    every, kept = document.find(ALL), document.find(KEPT)
    if not document.keep or every is None or kept is None:
        most = f"{document.grow:.0%}".replace("%", " %")
        return f"No single matrix is worth keeping within {most} of the size." if document.keep is not None else ""
    if kept.kl_mean >= every.kl_mean:
        return f"Keeping {' and '.join(document.keep)} was measured, and brings nothing."
    wide = sum(document.wide * each.parameters for each in document.matrices if each.name in document.keep)
    before, after = every.nbytes, kept.nbytes + wide
    return (
        f"Keeping {plural(len(document.keep), 'matrix').replace('matrixs', 'matrices')} brings that to "
        f"{sig(kept.kl_mean)} nats, and the matrices from {size(before)} to {size(after)}."
    )


def dearest(document: Sensitivity) -> str | None:
    """Bars of the matrices that cost most, those that are to be kept in another colour; None without any."""
    shown = [each for each in document.matrices[:DEAREST] if each.kl_mean > 0]
    if not shown:
        return None
    keep = document.keep or ()

    def paint(axes: Any) -> None:
        for y, each in enumerate(shown):
            colour = SERIES[0] if each.name in keep else MUTED
            axes.plot([0, each.kl_mean], [y, y], color=colour, lw=5, solid_capstyle="butt")
            text = f"{each.name} · {sig(each.kl_mean)}{' · keep' if each.name in keep else ''}"
            axes.annotate(one_line(text), (0, y), (0, 6), textcoords="offset points", color=INK, fontsize=10)
        axes.set_xlim(0, shown[0].kl_mean * 1.02)
        axes.xaxis.set_major_formatter(lambda value, _: sig(value))
        axes.xaxis.get_major_locator().set_params(nbins=4)
        axes.set_ylim(len(shown) - 0.5, -0.8)
        axes.set_yticks([])
        axes.set_xlabel("mean KL of a prediction when only this is quantised, nats")

    alt = "; ".join(f"{each.name} {sig(each.kl_mean)}" for each in shown)
    height = 32 * len(shown) + 80
    return draw("dearest", f"Bars of what single matrices cost: {alt}.", paint, height=height, left=14)


def by_layer(document: Sensitivity) -> str | None:
    """A map of layers and matrices, a square the larger the more it costs; None for very deep models."""
    cells = {each.name: each for each in document.matrices if each.name.startswith("blocks.") and each.kl_mean > 0}
    layers = sorted({_layer(name) for name in cells})
    if not layers or len(layers) > COLUMNS:
        return None
    kinds = list(dict.fromkeys(_kind(each.name) for each in document.effects if each.name in cells))
    most, keep = max(each.kl_mean for each in cells.values()), document.keep or ()
    largest = min(26.0, 380 / len(layers))

    def paint(axes: Any) -> None:
        for name, each in cells.items():
            colour = SERIES[0] if name in keep else MUTED
            side = max(1.5, largest * (each.kl_mean / most) ** 0.5)
            axes.plot([_layer(name)], [kinds.index(_kind(name))], "s", ms=side, mew=0, color=colour, clip_on=False)
        axes.set_xlim(min(layers) - 0.6, max(layers) + 0.6)
        axes.set_xticks(_some(layers))
        axes.set_ylim(len(kinds) - 0.4, -0.6)
        axes.set_yticks(range(len(kinds)), [one_line(kind) for kind in kinds])
        axes.set_xlabel("layer; the area of a square is what it costs")

    worst = ", ".join(f"{each.name} {sig(each.kl_mean)}" for each in list(cells.values())[:6])
    alt = f"Map of what matrices cost by layer, the dearest are {worst}."
    return draw("map", alt, paint, height=max(320, 30 * len(kinds) + 80), left=120)


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def _kind(name: str) -> str:
    return name.split(".", 2)[2]


def _some(layers: Sequence[int]) -> Sequence[int]:
    return layers[:: max(1, len(layers) // 12)]
