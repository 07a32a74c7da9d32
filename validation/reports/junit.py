"""Results as JUnit XML: one test case per parity, quality and latency row; what could not run is skipped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree import ElementTree

from validation.outcome import Latency, Outcome, Parity, Results, TextReading
from validation.reports.drift import remarks
from validation.reports.rows import Part
from validation.reports.words import fine, printable, sig, worst

_ELEMENT = {
    Outcome.FAIL: "failure",
    Outcome.SUSPICIOUS: "failure",
    Outcome.FALLBACK: "failure",
    Outcome.ERROR: "error",
    Outcome.COMPILED: "skipped",
    Outcome.MISSING: "skipped",
}


def render(results: Results) -> str:
    """The document with its XML declaration; suites without rows are left out."""
    root = ElementTree.Element("testsuites", name="rwkv-export")
    for name, rows in (("parity", results.parity), ("quality", results.quality), ("latency", results.latency)):
        if rows:
            root.append(_suite(name, rows))
    for count in ("tests", "failures", "errors", "skipped"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(name: str, rows: Sequence[Part]) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=name, tests=str(len(rows)))
    suite.extend([_case(name, row) for row in rows])
    for count, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(count, str(len(suite.findall(f"testcase/{tag}"))))
    return suite


def _case(suite: str, row: Part) -> ElementTree.Element:
    identity = row.identity
    name = f"{identity.artifact} on {identity.requested}"
    case = ElementTree.Element("testcase", classname=printable(f"{suite}.{identity.target}"), name=printable(name))
    if isinstance(row, Latency):
        case.set("time", f"{_measured(row):.6f}")
    if row.outcome is not Outcome.PASS:
        reasons = row.reasons or ("no reason recorded",)
        trouble = ElementTree.SubElement(case, _ELEMENT[row.outcome], type=row.outcome.value)
        trouble.set("message", printable(f"{row.outcome.value}: {reasons[0]}"))
        trouble.text = printable("\n".join(reasons))
    ElementTree.SubElement(case, "system-out").text = printable(_numbers(row))
    return case


def _measured(row: Latency) -> float:
    """All seconds spent in measured calls, load included; what is not finite counts nothing."""
    samples = [second for part in (row.decode, row.prefill) if part for second in part.seconds]
    return sum(second for second in (row.load_s, row.first_token_s, *samples) if math.isfinite(second))


def _numbers(row: Part) -> str:
    identity = row.identity
    how = f", {identity.evidence}" if identity.evidence not in ("", "run") else ""
    lines = [f"requested {identity.requested}, observed {identity.observed or 'nothing'}{how}"]
    if isinstance(row, Parity):
        for kind, reading in (("free", row.free), ("local", row.local)):
            if reading:
                error, divergence = sig(worst(reading.max_abs)), sig(worst(reading.kl))
                lines.append(f"{kind}: max abs {error}, KL {divergence} nats, top-1 {reading.top1:.4f}")
        lines += remarks(row)
    elif isinstance(row, Latency):
        for kind, samples in (("decode", row.decode), ("prefill", row.prefill)):
            if samples:
                lines.append(f"{kind}: median {sig(samples.median_ms)} ms, p99 {sig(samples.p99_ms)} ms")
        lines += row.warnings
    elif row.reading:
        lines.append(f"{row.text}: {_predictions(row.reading)}")
    return "\n".join(lines)


def _predictions(reading: TextReading) -> str:
    """Of a text, in one line."""
    return (
        f"{reading.tokens} tokens, KL mean {sig(reading.kl_mean)}, p99 {sig(reading.kl_p99)} nats, perplexity "
        f"{fine(reading.perplexity)}, the checkpoint's {fine(reading.reference_perplexity)}, "
        f"{fine(reading.bits_per_byte)} bits a byte, top-1 {reading.top1:.4f}"
    )
