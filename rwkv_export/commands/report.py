"""`rwkv-export report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export.options import Quiet, output_file

ResultFiles = Annotated[
    list[Path],
    typer.Argument(metavar="RESULTS", exists=True, help="Files that `--json FILE` wrote.", show_default=False),
]
History = Annotated[
    list[Path] | None,
    typer.Option("--history", metavar="FILE|FOLDER", exists=True, help="Earlier results, to draw beside. Repeatable."),
]
Out = Annotated[Path, output_file("--out", "The page to write.", "-o")]


def report(files: ResultFiles, out: Out = Path("report.html"), history: History = None, quiet: Quiet = False) -> None:
    """Write results as one HTML page that needs no network.

    Results of `validate`, `bench`, `gate` and `quality`, any number of files. With --history the page also draws how
    each row's speed went, run by run on the same machine.

    Examples:
      rwkv-export report results.json
      rwkv-export report parity.json latency.json -o report.html
      rwkv-export report today.json --history nightly/
    """
    from rwkv_export import output, results

    results.write_page(files, out, history=history or ())
    output.remark(f"wrote {out}", quiet=quiet)
