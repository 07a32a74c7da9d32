"""What the lint's errors do to the row of an artifact that promises the Neural Engine; it looks for nothing."""

from __future__ import annotations

from dataclasses import replace

from validation.lint.findings import Lint
from validation.lint.rules import Severity
from validation.outcome import Outcome, Parity

NUMBERS_HOLD = (Outcome.PASS, Outcome.FALLBACK)


def weighed(row: Parity, lint: Lint | None, *, compute: str) -> Parity:
    """The row, failed where its numbers hold and the lint found an error.

    compute: the artifact's arithmetic; float32 promises nothing, it is there to check the form of a step
    """
    errors = [each for each in lint.findings if each.severity == Severity.ERROR] if lint else []
    if not errors or compute == "float32" or row.outcome not in NUMBERS_HOLD:
        return row
    sentences = (f"the Neural Engine would not run it: {each.what} ({each.places[0]}); {each.fix}" for each in errors)
    return replace(row, outcome=Outcome.FAIL, reasons=(*row.reasons, *sentences))
