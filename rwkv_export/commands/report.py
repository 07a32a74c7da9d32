"""`rwkv-export report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export.options import Quiet, output_file

ResultFiles = Annotated[list[Path], typer.Argument(metavar="RESULTS.json...", exists=True, help="From `--json FILE`.")]
Out = Annotated[Path, output_file("--out", "The page to write.", "-o")]


def report(files: ResultFiles, out: Out = Path("report.html"), quiet: Quiet = False) -> None:
    """Write results of `validate` and `bench` as one HTML page that needs no other file and no network.

    Examples:
      rwkv-export report results.json
      rwkv-export report parity.json latency.json -o report.html
    """
    from rwkv_export import output, results

    results.write_page(files, out)
    output.remark(f"wrote {out}", quiet=quiet)
