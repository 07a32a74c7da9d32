"""Prints the table of GPUs in benchmarks/README.md from a results file of gpu.py; measures nothing.

python benchmarks/gpu.py --out results.json && python benchmarks/gpu_table.py results.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from validation import outcome
from validation.outcome import Latency, Parity

TITLES = (
    "model",
    "target",
    "precision",
    "ran on",
    "verdict",
    "max abs logit error",
    "first token",
    "a token",
    "GB/s",
    "of a copy",
)
RULES = "|---|---|---|---|---|--:|--:|--:|--:|--:|--:|"


def table(results: outcome.Results, limit: dict[str, Any]) -> str:
    """A Markdown row for each artifact and place; one that could not be timed has empty cells."""
    parity = {_key(row): row for row in results.parity}
    prompts = sorted({row.prefill.tokens for row in results.latency if row.prefill})
    lines = [f"| {' | '.join(TITLES)} | prefill {' '.join(map(str, prompts))} |", RULES]
    lines += [_line(row, parity.get(_key(row)), limit) for row in results.latency]
    return "\n".join(lines)


def _key(row: Latency | Parity) -> tuple[str, str]:
    return row.identity.artifact, row.identity.requested


def _line(row: Latency, parity: Parity | None, limit: dict[str, Any]) -> str:
    identity = row.identity
    cells = [
        identity.model,
        identity.target,
        identity.precision,
        identity.observed or identity.requested,
        str(parity.outcome) if parity else "not checked",
        f"{parity.free.worst:.1e}" if parity and parity.free else "",
        *_times(row, limit),
    ]
    return f"| {' | '.join(cells)} |"


def _times(row: Latency, limit: dict[str, Any]) -> list[str]:
    """Those of the CPU are beside no copy: it reads faster than it copies."""
    if not row.decode or not row.prefill:
        return [str(row.outcome), "", "", "", ""]
    speed = limit["decode_bytes"][row.identity.artifact] / (row.decode.median_ms / 1e3)
    return [
        f"{row.first_token_s:.2f} s",
        f"{row.decode.median_ms:.2f} ms",
        f"{speed / 1e9:.0f}",
        "" if row.identity.observed.endswith(":cpu") else f"{speed / limit['copy_bytes_per_second']:.1%}",
        f"{row.prefill.tokens_per_second:.0f} tok/s",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    path = parser.parse_args().results
    limit = json.loads(path.with_suffix(".limit.json").read_text(encoding="utf-8"))
    print(table(outcome.read(path), limit))


if __name__ == "__main__":
    main()
