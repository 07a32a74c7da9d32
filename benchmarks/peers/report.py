"""Prints what was measured as tables, and what is odd about it as sentences; measures nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from peers.contract import Bandwidth, Conversion, Row
from peers.stats import Spread, gigabytes_per_second, limit, measures, rates, ratios, spread

WIDTH = 132
TOLERATED = 0.3  # processors beyond the asked ones
LEAST = 0.7  # of the asked processors; threads that wait for each other leave some idle


def show(rows: Sequence[Row], bandwidths: Sequence[Bandwidth], console: Console) -> None:
    """Everything about rows of one size and one number of threads."""
    first = rows[0]
    console.print(f"\n[bold]RWKV-7 {first.size}, {first.threads} thread{'s' * (first.threads > 1)}[/bold]")
    present = [row for row in rows if row.missing is None]
    if present:
        console.print(speeds(present, limit(bandwidths, first.threads)), costs(present))
    for row in rows:
        if row.missing is not None:
            console.print(f"{row.engine} {row.precision}  missing: {row.missing}", soft_wrap=True, markup=False)
    if found := ratios(rows):
        table = _table("ours / peer, tokens a second", "measure", "median", "range over the rounds", "rounds")
        for ratio in found:
            pair = f"{ratio.engine} {ratio.ours} / {ratio.peer} {ratio.precision}"
            table.add_row(pair, ratio.measure, f"{ratio.ratio.median:.2f}", _range(ratio.ratio, 2), str(ratio.rounds))
        console.print(table)
    for sentence in oddities(rows):
        console.print(f"warning: {sentence}", soft_wrap=True, markup=False)


def speeds(rows: Sequence[Row], most: float | None) -> Table:
    """Tokens a second: median (range) over the rounds, and what decode reads of the memory's speed."""
    asked = measures(rows)
    table = _table("engine", *(f"{measure} tok/s" for measure in asked), "MB a token", "GB/s", "of the limit")
    for row in rows:
        cells = []
        for measure in asked:
            found = spread(rates(row, measure))
            cells.append(f"{found.median:.1f} ({_range(found, 1)})")
        reached = gigabytes_per_second(row)
        cells.append("" if row.bytes_per_token is None else f"{row.bytes_per_token / 1e6:.1f}")
        cells += ["", ""] if reached is None else [f"{reached:.1f}", "" if most is None else f"{reached / most:.0%}"]
        table.add_row(f"{row.engine} {row.precision}", *cells)
    return table


def costs(rows: Iterable[Row]) -> Table:
    """Loading, memory and closeness to the float32 reference."""
    columns = ("load s", "files MB", "peak RSS MB", "anonymous MB", "mapped MB", "before loading MB")
    table = _table("engine", *columns, "step error", "prefill error", "cores")
    for row in rows:
        memory = [row.memory.get(f"{name}_bytes") for name in ("peak_rss", "anonymous", "file", "base_rss")]
        table.add_row(
            f"{row.engine} {row.precision}",
            f"{row.load_seconds:.2f}",
            *(_megabytes(value) for value in (row.file_bytes, *memory)),
            *(f"{row.errors[mode]:.2%}" for mode in ("step", "prefill")),
            f"{row.cores:.2f}",
        )
    return table


def show_start(bandwidths: Iterable[Bandwidth], console: Console) -> None:
    """The physical limit."""
    table = _table("read bandwidth", "pages", "GB/s", "measured with")
    for found in bandwidths:
        table.add_row(
            f"{found.threads} thread{'s' * (found.threads > 1)}", found.pages, f"{found.gb_per_s:.1f}", found.method
        )
    console.print(table)


def show_conversions(conversions: Iterable[Conversion], console: Console) -> None:
    """How close the peers' 16-bit models are to ours."""
    for found in conversions:
        title = f"{found.size}: {found.engine} F16 against the float32 reference:"
        told = ", ".join(f"{mode} {error:.3%} off" for mode, error in found.errors.items())
        console.print(title, told or f"missing: {found.missing}", soft_wrap=True, markup=False)


def oddities(rows: Iterable[Row]) -> list[str]:
    """What makes a row unfit for a comparison without making it wrong."""
    return [sentence for row in rows if (sentence := _oddity(row))]


def _oddity(row: Row) -> str | None:
    said = f"{row.engine} {row.precision} kept {row.cores or 0:.1f} processors busy where {row.threads} was asked"
    if row.cores is None or LEAST * row.threads <= row.cores <= row.threads + TOLERATED:
        return None
    return said + (": other programs were in the way" if row.cores < row.threads else "")


def _table(first: str, *columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _range(found: Spread, digits: int) -> str:
    return f"{found.low:.{digits}f}-{found.high:.{digits}f}"


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.0f}"
