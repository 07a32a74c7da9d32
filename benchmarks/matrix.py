"""Prints the README's table of targets from a results file, or what that leaves unproven; measures nothing.

rwkv-export demo && python benchmarks/matrix.py out/demo/results.json
python benchmarks/matrix.py out/demo/results.json --unproven

The README's comes of `validate` over one artifact a row, and of `bench` over those that a processor runs.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from exporter import registry
from validation import outcome
from validation.evidence import Evidence
from validation.outcome import Outcome, Results
from validation.reports.rows import Row, join, place

HEAD = """| target | precision | evidence | ran on | max abs logit error | KL, nats | mean KL on text | decode |
|---|---|---|---|---|---|---|---|"""

WIDTH = 120


def table(results: Results) -> str:
    """One Markdown row an artifact; only what its own runtime did on hardware has a speed."""
    return "\n".join([HEAD, *(_line(row) for row in join([results]) if row.parity)])


def _line(row: Row) -> str:
    identity, free, text = row.identity, row.free, row.quality and row.quality.reading
    said = row.outcome in (Outcome.PASS, Outcome.COMPILED)
    cells = (
        f"`{identity.target}`",
        identity.precision,
        row.evidence.value if said else f"{row.evidence}: {row.outcome}",
        place(identity),
        f"{free.worst:.1e}" if free else "",
        f"{max(free.kl):.1e}" if free else "",
        f"{text.kl_mean:.1e}" if text else "",
        f"{row.decode.median_ms:.2f} ms" if row.decode and row.evidence is Evidence.HARDWARE else "",
    )
    return f"| {' | '.join(cells)} |"


def unproven(results: Results) -> str:
    """Every precision of every target that no row of the results is evidence of, as one sentence."""
    shown = {
        (row.identity.target, row.identity.precision)
        for row in join([results])
        if row.evidence is not Evidence.UNPROVEN
    }
    lacking = {
        name: [precision for precision in target.precisions if (name, precision) not in shown]
        for name, target in registry.targets().items()
    }
    parts = [f"`{name}` {', '.join(precisions)}" for name, precisions in lacking.items() if precisions]
    sentence = f"{sum(map(len, lacking.values()))} more are *unproven* by that run: {'; '.join(parts)}."
    return textwrap.fill(sentence, WIDTH, break_on_hyphens=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--unproven", action="store_true", help="name what has no row instead")
    asked = parser.parse_args()
    print((unproven if asked.unproven else table)(outcome.read(asked.results)))


if __name__ == "__main__":
    main()
