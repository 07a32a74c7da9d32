"""Results as GitHub Markdown for a job summary: verdict, tables, reasons; not a page to keep."""

from __future__ import annotations

import re

from validation.lint.findings import Finding, Lint
from validation.outcome import Hops, Quality, Results
from validation.reports import drift, hops
from validation.reports.delegates import Taken, taken
from validation.reports.rows import Row, join, said, verdict
from validation.reports.words import NOTHING, fine, one_line, plural, share, sig, size, worst

SIGNS = {
    "pass": "✅",
    "fail": "❌",
    "fallback": "🔶",
    "suspicious": "❓",
    "compiled": "📦",
    "missing": "⚪",
    "error": "💥",
    "timed": "⏱️",
}
HEADER = (
    "Artifact",
    "Target",
    "Ran on",
    "Outcome",
    "Evidence",
    "max abs Δlogit",
    "KL",
    "top-1",
    "state error",
    "tok/s",
    "ms",
    "weights",
)
TEXT_HEADER = (
    "Artifact",
    "Precision",
    "Text",
    "Outcome",
    "weights",
    "mean KL",
    "p99 KL",
    "perplexity",
    "checkpoint's",
    "top-1",
)
DELEGATE_HEADER = ("Artifact", "Delegate calls", "Left outside", "Target", "MACs inside", "weights", "operators")
HOPS_HEADER = ("Two hops", "Precision", "Ran on", "Kernel against the same graph on", *hops.HEADER)
LINT_HEADER = ("Linted artifact", "Severity", "Rule", "Found", "times")
LEFT = 4
"""Columns of words in most tables; the others hold numbers and are aligned right."""


def render(results: Results) -> str:
    """The summary, ending in a newline; every text that comes from the results is escaped."""
    rows = join([results])
    lines = [f"**{_text(str(verdict(rows)))}**", ""]
    if rows:
        lines += _table(HEADER, [_cells(row) for row in rows], words=LEFT + 1)
    if apart := hops.split(rows):
        lines += ["", *_table(HOPS_HEADER, [[*_hop_words(row, parts), *numbers] for row, parts, numbers in apart])]
    if read := [row.quality for row in rows if row.quality]:
        lines += ["", *_table(TEXT_HEADER, [_text_cells(part) for part in read])]
    if found := taken(rows):
        lines += ["", *_table(DELEGATE_HEADER, [_delegate_cells(line) for line in found])]
    if linted := [line for lint in results.lint for line in _lint_lines(lint)]:
        lines += ["", *_table(LINT_HEADER, linted)]
    remarks = [(row, text) for row in rows if row.parity for text in drift.remarks(row.parity)]
    lines += _items("Reasons", [(row, reason) for row in rows for reason in row.reasons])
    lines += _items("Compared", remarks)
    lines += _items("Warnings", [(row, text) for row in rows if row.latency for text in row.latency.warnings])
    machine = results.machine
    facts = ", ".join(fact for fact in (machine.name, machine.cpu, machine.system, f"Python {machine.python}") if fact)
    return "\n".join([*lines, "", f"Made on {_text(facts)}.", ""])


def _cells(row: Row) -> list[str]:
    identity, free = row.identity, row.free
    asked = f" (asked for {identity.requested})" if row.observed != identity.requested else ""
    return [
        _text(identity.artifact),
        _text(f"{identity.target} {identity.precision}"),
        _text(f"{row.where}{asked}"),
        "<br>".join(f"{SIGNS[kind]} {words}" for kind, words in row.badges),
        row.evidence,
        sig(row.error),
        sig(worst(free.kl) if free else None),
        share(free.top1 if free else None),
        sig(worst(free.state_rel.values()) if free else None),
        sig(row.tokens_per_second),
        sig(row.decode.median_ms if row.decode else None),
        size(row.latency.weight_bytes) if row.latency else NOTHING,
    ]


def _hop_words(row: Row, parts: Hops) -> list[str]:
    identity = row.identity
    return [_text(word) for word in (identity.artifact, identity.precision, identity.observed, parts.place)]


def _text_cells(part: Quality) -> list[str]:
    reading, limit = part.reading, f" (≤ {sig(part.bound.mean_kl)})" if part.bound else ""
    numbers = [NOTHING] * 5
    if reading:
        divergences = f"{sig(reading.kl_mean)}{limit}", sig(reading.kl_p99)
        perplexities = fine(reading.perplexity), fine(reading.reference_perplexity)
        numbers = [*divergences, *perplexities, share(reading.top1)]
    return [
        _text(part.identity.artifact),
        _text(part.identity.precision),
        _text(f"{part.text}, {plural(reading.tokens, 'token')}" if reading else part.text),
        f"{SIGNS[part.outcome]} {said(part.outcome)}",
        size(part.weight_bytes),
        *numbers,
    ]


def _delegate_cells(line: Taken) -> list[str]:
    identity = line.row.identity
    outside = f"{line.outside} ({line.why})" if line.why else line.outside
    words = map(_text, (identity.artifact, line.calls, outside, f"{identity.target} {identity.precision}"))
    return [*words, *(" ".join(pair) for pair in (line.macs, line.weights)), line.operators[1]]


def _lint_lines(lint: Lint) -> list[list[str]]:
    """A line for each finding, or one that says that there is none."""
    artifact = _text(f"{lint.artifact} ({lint.target} {lint.precision})")
    if not lint.findings:
        return [
            [artifact, NOTHING, NOTHING, _text(lint.trouble or f"nothing in {lint.operations} operations"), NOTHING]
        ]
    return [
        [artifact, finding.severity, _text(finding.rule), _text(_found(finding)), str(finding.count)]
        for finding in lint.findings
    ]


def _found(finding: Finding) -> str:
    return f"{finding.what}, first in {finding.places[0]}; {finding.fix}" if finding.places else finding.what


def _table(header: tuple[str, ...], rows: list[list[str]], *, words: int = LEFT) -> list[str]:
    return [_line(header), _line([":--"] * words + ["--:"] * (len(header) - words)), *map(_line, rows)]


def _items(title: str, items: list[tuple[Row, str]]) -> list[str]:
    return ["", f"**{title}**", "", *(f"- {_text(row.label)}: {_text(text)}" for row, text in items)] if items else []


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str) -> str:
    """One line in which nothing is markup, a link or a mention."""
    flat = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace("@", "&#64;")
    return re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", flat).replace("://", ":&#8203;//")
