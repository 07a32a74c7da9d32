"""What a lint found, as data that results documents hold; it looks for nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What one rule of the lint found in an artifact.

    severity: "error", "warning" or "note", as in validation.lint.rules
    count:    how many places; the first of them are in `places`
    """

    rule: str
    severity: str
    count: int
    places: tuple[str, ...]
    what: str
    fix: str


@dataclass(frozen=True)
class Lint:
    """What the lint found in an artifact's Core ML programs, errors first.

    operations: how many were looked at, in all functions
    trouble:    why nothing could be looked at; "" where it could
    """

    artifact: str
    target: str
    precision: str
    operations: int
    findings: tuple[Finding, ...]
    trouble: str = ""

    def count(self, severity: str) -> int:
        """How many rules of a severity found something."""
        return sum(finding.severity == severity for finding in self.findings)
