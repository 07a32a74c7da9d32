"""Prints the table of ratios in benchmarks/README.md from a results file of cpu_peers.py; measures nothing.

python benchmarks/cpu_peers.py --out results.json && python benchmarks/peers_table.py results.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

PEER = "llama.cpp"
HEAD = "| model, threads | | {measures} |\n|---|---|{rules}"


def table(document: dict[str, Any]) -> str:
    """One Markdown row a model, number of threads and pair: tokens a second, ours and theirs, and the ratio's range."""
    measures = list(dict.fromkeys(ratio["measure"] for ratio in document["ratios"]))
    lines = [HEAD.format(measures=" | ".join(measures), rules="---|" * len(measures))]
    rows = {(row["size"], row["threads"], row["engine"], row["precision"]): row for row in document["rows"]}
    ratios = [ratio for ratio in document["ratios"] if ratio["peer"] == PEER]
    for key in dict.fromkeys(map(_pair, ratios)):
        size, threads, engine, precision, peer = key
        sides = rows[size, threads, engine, precision], rows[size, threads, PEER, peer]
        found = {ratio["measure"]: ratio["ratio"] for ratio in ratios if _pair(ratio) == key}
        cells = [_cell(measure, found[measure], *sides) for measure in measures]
        lines.append(f"| {size}, {threads} | {engine} {precision} / {PEER} {peer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _pair(ratio: dict[str, Any]) -> tuple[str, int, str, str, str]:
    return ratio["size"], ratio["threads"], ratio["engine"], ratio["ours"], ratio["precision"]


def _cell(measure: str, ratio: dict[str, float], ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    tokens = int(measure.partition(" ")[2] or 1)
    mine, other = (
        statistics.median(tokens / statistics.median(part) for part in side["samples"][measure])
        for side in (ours, theirs)
    )
    return f"{mine:.0f} / {other:.0f} = **{ratio['median']:.2f}** ({ratio['low']:.2f}-{ratio['high']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    print(table(json.loads(parser.parse_args().results.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
