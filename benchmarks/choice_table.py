"""Prints the README's table of speeds on a CPU from a results file of cpu_peers.py; measures nothing.

python benchmarks/cpu_peers.py --out results.json && python benchmarks/choice_table.py results.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from peers.contract import MINE

HEAD = "| | precision | {measures} | files | peak RSS | logits off by |\n|---|---|{rules}--:|--:|--:|"
Row = dict[str, Any]


def table(document: dict[str, Any], prompt: str) -> str:
    """One Markdown row an engine and precision: tokens a second by number of threads, bytes on disk and in memory.

    Of the first size in the results. Errors are relative, of the logits after 16 single tokens.
    """
    rows = [row for row in document["rows"] if row["size"] == document["rows"][0]["size"]]
    threads = sorted({row["threads"] for row in rows})
    asked = [(measure, count) for measure in ("decode", prompt) for count in threads]
    titles = [f"{measure}, {count} thread{'s' * (count > 1)}" for measure, count in asked]
    lines = [HEAD.format(measures=" | ".join(titles), rules="--:|" * len(titles))]
    found: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        if row["missing"] is None:
            found.setdefault((row["engine"], row["precision"]), {})[row["threads"]] = row
    for (engine, precision), sides in found.items():
        some = sides[min(sides)]
        cells = [_speed(sides.get(count), measure) for measure, count in asked]
        cells += [_megabytes(some["file_bytes"]), _megabytes(some["memory"]["peak_rss_bytes"])]
        lines.append(f"| {_name(engine)} | {precision} | {' | '.join(cells)} | {some['errors']['step']:.2%} |")
    return "\n".join(lines)


def _name(engine: str) -> str:
    return f"`{MINE[engine].target}`, `{MINE[engine].place}`" if engine in MINE else engine


def _speed(row: Row | None, measure: str) -> str:
    """Tokens a second: the median over the rounds of the rounds' medians."""
    if row is None:
        return ""
    tokens = int(measure.partition(" ")[2] or 1)
    return f"{tokens / statistics.median(statistics.median(turn) for turn in row['samples'][measure]):.0f}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--prompt", default="prefill 256", help='which prompt, as the results name it ("prefill 256")')
    arguments = parser.parse_args()
    print(table(json.loads(arguments.results.read_text(encoding="utf-8")), arguments.prompt))


if __name__ == "__main__":
    main()
