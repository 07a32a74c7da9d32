"""What the lint and the float16 audit found, as tables and sentences for people on stdout; it looks for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from rwkv_export.output import plain_table, stdout

if TYPE_CHECKING:
    from validation.fp16_risks import Audit, Range
    from validation.lint.findings import Lint

STYLES = {"error": "red", "warning": "yellow", "note": "dim"}


def print_lint(found: Sequence[Lint]) -> None:
    """A table an artifact, errors first, and a sentence that counts."""
    console = stdout()
    for lint in found:
        if lint.findings:
            console.print(_findings(lint))
        console.print(summary(lint), soft_wrap=True)


def summary(lint: Lint) -> str:
    """One sentence: how many rules found something."""
    from validation.reports.words import plural

    if lint.trouble:
        return f"lint of {lint.artifact}: not done, {lint.trouble}"
    counts = ", ".join(plural(lint.count(severity), severity) for severity in STYLES if lint.count(severity))
    return f"lint of {lint.artifact}: {counts or 'nothing found'} in {plural(lint.operations, 'operation')}"


def _findings(lint: Lint) -> Table:
    from validation.reports.words import listing

    table = plain_table(
        Column("severity", no_wrap=True),
        Column("rule", no_wrap=True),
        Column("times", justify="right", no_wrap=True),
        Column("found, and what to do", overflow="fold"),
        Column("where", overflow="fold"),
    )
    for finding in lint.findings:
        more = finding.count - len(finding.places)
        where = listing(finding.places, most=len(finding.places)) + (f" and {more} more" if more else "")
        severity = Text(finding.severity, style=STYLES.get(finding.severity, ""))
        table.add_row(severity, finding.rule, str(finding.count), f"{finding.what}: {finding.fix}", where)
    return table


def print_audit(audit: Audit) -> None:
    """A line for every block and what lies outside of them, then a sentence for every risk."""
    from validation.reports.words import plural

    console = stdout()
    console.print(_ranges(audit))
    for risk in audit.risks:
        console.print(risk.sentence, soft_wrap=True)
    modules = len({risk.module for risk in audit.risks})
    verdict = f"{plural(modules, 'module')} at risk" if modules else "nothing at risk"
    read = f"{plural(audit.tokens, 'token')} of {audit.text}"
    console.print(f"{audit.model} in float16: {verdict} over {read}, all of it computed in float32", soft_wrap=True)


def _ranges(audit: Audit) -> Table:
    from validation.reports.words import portion, sig

    table = plain_table(
        Column("part", no_wrap=True),
        *(Column(name, justify="right", no_wrap=True) for name in ("largest", "square in a norm", "state")),
        *(Column(name, justify="right", no_wrap=True) for name in ("round to 0", "decays to 1.0")),
        Column("largest is", overflow="fold"),
    )
    for part, ranges in _by_part(audit.ranges).items():
        squares = [one.largest for one in ranges if one.what == "squares"]
        states = [one.largest for one in ranges if one.what.startswith("state ")]
        most = max((one for one in ranges if one.what != "squares"), key=lambda one: one.largest, default=None)
        decays = [decay for decay in audit.decays if decay.module.startswith(f"{part}.")]
        table.add_row(
            part,
            sig(most.largest if most else None),
            sig(max(squares, default=None)),
            sig(max(states, default=None)),
            portion(sum(one.vanishing for one in ranges) / sum(one.values for one in ranges)),
            portion(decays[0].ones / max(decays[0].values, 1)) if decays else "",
            f"{most.what} of {most.module or 'the model'}" if most else "",
        )
    return table


def _by_part(ranges: Sequence[Range]) -> dict[str, list[Range]]:
    """By block, "blocks.3", and by module outside of blocks."""
    parts: dict[str, list[Range]] = {}
    for one in ranges:
        part = ".".join(one.module.split(".")[:2]) if one.module.startswith("blocks.") else one.module
        parts.setdefault(part or "embedding", []).append(one)
    return parts
