"""Prints tables of targets from a results file: a line an artifact, or a line a target; measures nothing.

python benchmarks/targets.py out/targets --json results.json
python benchmarks/matrix.py results.json              # docs/targets.md
python benchmarks/matrix.py results.json --by-target  # the README
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from validation import outcome
from validation.evidence import Evidence
from validation.outcome import Outcome, Results
from validation.reports.rows import Row, join, place

HEAD = """| target | precision | evidence | ran on | max abs logit error | KL, nats | mean KL on text | decode |
|---|---|---|---|---|---|---|---|"""

BRIEF = """| target | evidence | ran on | max abs logit error | rounded weights: mean KL on text | decode |
|---|---|---|---|---|---|"""


def table(results: Results) -> str:
    """One Markdown row an artifact; only what its own runtime did on hardware has a speed."""
    return "\n".join([HEAD, *map(_line, filter(_compared, join([results])))])


def by_target(results: Results) -> str:
    """One Markdown row a target, the best proven first, each precision with its error, or KL on text."""
    groups = {name: list(group) for name, group in groupby(filter(_compared, join([results])), _target)}
    best = sorted(groups, key=lambda name: min(map(_rank, groups[name])))
    return "\n".join([BRIEF, *(_brief(name, groups[name]) for name in best)])


def _line(row: Row) -> str:
    identity, free, text = row.identity, row.free, _text(row)
    cells = (
        f"`{identity.target}`",
        identity.precision,
        _evidence(row),
        place(identity),
        f"{free.worst:.1e}" if free else "",
        f"{max(free.kl):.1e}" if free else "",
        f"{text:.1e}" if text is not None else "",
        f"{ms:.2f} ms" if (ms := _ms(row)) else "",
    )
    return f"| {' | '.join(cells)} |"


def _brief(name: str, rows: Sequence[Row]) -> str:
    times = sorted(ms for row in rows if (ms := _ms(row)))
    bounds = dict.fromkeys(f"{ms:.2f}" for ms in times[:1] + times[-1:])
    cells = (
        f"`{name}`",
        _each(_evidence(row) if _held(row) else f"{row.identity.precision} {_evidence(row)}" for row in rows),
        _each(place(row.identity) for row in rows),
        _each(_named(row, row.free.worst if row.free else None) for row in rows if _text(row) is None),
        _each(_named(row, _text(row)) for row in rows if _text(row) is not None),
        f"{' to '.join(bounds)} ms" if times else "",
    )
    return f"| {' | '.join(cells)} |"


def _compared(row: Row) -> bool:
    return row.parity is not None


def _rank(row: Row) -> int:
    return list(Evidence).index(row.evidence)


def _target(row: Row) -> str:
    return row.identity.target


def _each(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def _named(row: Row, number: float | None) -> str:
    return row.identity.precision if number is None else f"{row.identity.precision} {number:.1e}"


def _evidence(row: Row) -> str:
    return row.evidence.value if _held(row) else f"{row.evidence}: {row.outcome}"


def _held(row: Row) -> bool:
    return row.outcome in (Outcome.PASS, Outcome.COMPILED)


def _text(row: Row) -> float | None:
    """Mean KL on text, of those that read one."""
    return row.quality.reading.kl_mean if row.quality and row.quality.reading else None


def _ms(row: Row) -> float | None:
    """Of a token, on hardware."""
    return row.decode.median_ms if row.decode and row.evidence is Evidence.HARDWARE else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--by-target", action="store_true", help="one line a target")
    asked = parser.parse_args()
    print((by_target if asked.by_target else table)(outcome.read(asked.results)))


if __name__ == "__main__":
    main()
