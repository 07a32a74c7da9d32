"""`rwkv-export inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export.options import Json, Quiet

Thing = Annotated[Path, typer.Argument(metavar="CHECKPOINT|ARTIFACT", help="A checkpoint, or an artifact folder.")]


def inspect(path: Thing, json: Json = False, quiet: Quiet = False) -> None:
    """What a checkpoint or an artifact is: version, shapes, parameters, state; for artifacts also files and hashes.

    Nothing is executed: checkpoints are read without unpickling code. An artifact's hashes are verified.

    Examples:
      rwkv-export inspect RWKV-x070-World-0.1B.pth
      rwkv-export inspect out/tiny.onnx-cpu.fp32
      rwkv-export inspect out/tiny.onnx-cpu.fp32 --json | jq .manifest.state
    """
    from rwkv_export import inspection, output

    with output.talking(quiet) as progress, progress(f"reading {path}"):
        found = inspection.inspect(path)
    if json:
        output.print_json(found)
    else:
        inspection.show(found)
