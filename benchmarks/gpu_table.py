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
    "precision",
    "ran on",
    "verdict",
    "max abs logit error",
    "first token",
    "a token",
    "GB/s",
    "of a copy",
)
RULES = "|---|---|---|---|--:|--:|--:|--:|--:|--:|"


def table(results: outcome.Results, limit: dict[str, Any]) -> str:
    """A Markdown row for each artifact and place that was timed."""
    parity = {_key(row): row for row in results.parity}
    timed = [row for row in results.latency if row.decode and row.prefill]
    prompts = sorted({row.prefill.tokens for row in timed if row.prefill})
    lines = [f"| {' | '.join(TITLES)} | prefill {' '.join(map(str, prompts))} |", RULES]
    lines += [_line(row, parity.get(_key(row)), limit) for row in timed]
    return "\n".join(lines)


def _key(row: Latency | Parity) -> tuple[str, str]:
    return row.identity.artifact, row.identity.requested


def _line(row: Latency, parity: Parity | None, limit: dict[str, Any]) -> str:
    identity = row.identity
    assert row.decode is not None
    assert row.prefill is not None
    speed = limit["decode_bytes"][identity.artifact] / (row.decode.median_ms / 1e3)
    cells = [
        identity.model,
        identity.precision,
        identity.observed,
        str(parity.outcome) if parity else "",
        f"{parity.free.worst:.1e}" if parity and parity.free else "",
        f"{row.first_token_s:.2f} s",
        f"{row.decode.median_ms:.2f} ms",
        f"{speed / 1e9:.0f}",
        f"{speed / limit['copy_bytes_per_second']:.1%}",
        f"{row.prefill.tokens_per_second:.0f} tok/s",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    path = parser.parse_args().results
    limit = json.loads(path.with_suffix(".limit.json").read_text(encoding="utf-8"))
    print(table(outcome.read(path), limit))


if __name__ == "__main__":
    main()
