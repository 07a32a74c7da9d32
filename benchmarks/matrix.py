"""Prints the README's table of targets from a results file; measures nothing.

rwkv-export demo && python benchmarks/matrix.py out/demo/results.json

The README's comes of `validate` over one artifact a row, and of `bench` over those that a processor runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from validation import outcome
from validation.outcome import Parity, Results

HEAD = """| target | precision | ran on | verdict | max abs logit error | KL, nats | mean KL on text | decode |
|---|---|---|---|---|---|---|---|"""


def table(results: Results) -> str:
    """One Markdown row an artifact; an interpreter's speed is not a target's, and is not shown."""
    return "\n".join([HEAD, *(_row(row, results) for row in results.parity)])


def _row(row: Parity, results: Results) -> str:
    identity, free = row.identity, row.free
    if free is None:
        place = "compiled only" if row.outcome == "compiled" else ""
        return f"| `{identity.target}` | {identity.precision} | {place} | {row.outcome} | | | | |"
    timed = [latency.decode for latency in results.latency if latency.identity == identity and latency.decode]
    aside = "" if identity.evidence == "run" else f", {identity.evidence}"
    texts = [text.reading.kl_mean for text in results.quality if text.identity == identity and text.reading]
    text = f"{texts[0]:.1e}" if texts else ""
    speed = f"{timed[0].median_ms:.2f} ms" if timed and not aside else ""
    place = identity.observed + aside
    return (
        f"| `{identity.target}` | {identity.precision} | {place} | {row.outcome} | {free.worst:.1e} "
        f"| {max(free.kl):.1e} | {text} | {speed} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    print(table(outcome.read(parser.parse_args().results)))


if __name__ == "__main__":
    main()
