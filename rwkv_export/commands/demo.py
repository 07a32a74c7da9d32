"""`rwkv-export demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export.options import Quiet

Out = Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", file_okay=False, help="Where everything goes.")]


def demo(*, out: Out = Path("out/demo"), quiet: Quiet = False) -> None:
    """The bundled model through all of it: exported, proven, timed.

    Exports it to ONNX, Core ML and ExecuTorch, validates and measures each, and lets one write a few lines. Needs no
    download and no device. Writes artifacts, results.json and report.html.

    Examples:
      rwkv-export demo
      rwkv-export demo -o /tmp/demo && xdg-open /tmp/demo/report.html
    """
    from rwkv_export import output, results
    from rwkv_export.demo import demo as run
    from rwkv_export.demo import sample

    with output.talking(quiet) as progress:
        done = run(out, progress=progress)
    code = results.deliver(done.results)
    if code == 0:
        print()
        output.stream(sample(done.artifacts[0]))
    output.remark(f"report: {done.page}", quiet=quiet)
    raise typer.Exit(code)
