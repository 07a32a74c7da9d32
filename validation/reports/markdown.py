"""Results as GitHub Markdown for a job summary: verdict, one table, reasons; not a page to keep."""

from __future__ import annotations

import re

from validation.outcome import Results
from validation.reports.rows import Row, join, verdict
from validation.reports.words import NOTHING, one_line, share, sig, size, worst

SIGNS = {
    "pass": "✅",
    "fail": "❌",
    "fallback": "🔶",
    "suspicious": "❓",
    "missing": "⚪",
    "error": "💥",
    "timed": "⏱️",
}
HEADER = (
    "Artifact",
    "Target",
    "Ran on",
    "Outcome",
    "max abs Δlogit",
    "KL",
    "top-1",
    "state error",
    "tok/s",
    "ms",
    "weights",
)
LEFT = 4
"""Columns of words; the others hold numbers and are aligned right."""


def render(results: Results) -> str:
    """The summary, ending in a newline; every text that comes from the results is escaped."""
    rows = join([results])
    lines = [f"**{_text(str(verdict(rows)))}**", ""]
    if rows:
        lines += [_line(HEADER), _line([":--"] * LEFT + ["--:"] * (len(HEADER) - LEFT))]
        lines += [_line(_cells(row)) for row in rows]
    lines += _items("Reasons", [(row, reason) for row in rows for reason in row.reasons])
    lines += _items("Warnings", [(row, text) for row in rows if row.latency for text in row.latency.warnings])
    machine = results.machine
    facts = ", ".join(fact for fact in (machine.cpu, machine.system, f"Python {machine.python}") if fact)
    return "\n".join([*lines, "", f"Made on {_text(facts)}.", ""])


def _cells(row: Row) -> list[str]:
    identity, free = row.identity, row.free
    decode = row.latency.decode if row.latency else None
    place = f"{row.observed or 'nowhere'}{', interpreted' if row.interpreted else ''}"
    asked = f" (asked for {identity.requested})" if row.observed != identity.requested else ""
    return [
        _text(identity.artifact),
        _text(f"{identity.target} {identity.precision}"),
        _text(f"{place}{asked}"),
        "<br>".join(f"{SIGNS[kind]} {words}" for kind, words in row.badges),
        sig(row.error),
        sig(worst(free.kl) if free else None),
        share(free.top1 if free else None),
        sig(worst(free.state_rel.values()) if free else None),
        sig(row.tokens_per_second),
        sig(decode.median_ms if decode else None),
        size(row.latency.weight_bytes) if row.latency else NOTHING,
    ]


def _items(title: str, items: list[tuple[Row, str]]) -> list[str]:
    return ["", f"**{title}**", "", *(f"- {_text(row.label)}: {_text(text)}" for row, text in items)] if items else []


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str) -> str:
    """One line in which nothing is markup, a link or a mention."""
    flat = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace("@", "&#64;")
    return re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", flat).replace("://", ":&#8203;//")
