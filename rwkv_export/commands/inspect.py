"""`rwkv-export inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export.options import Json, Quiet, few, text_file

Thing = Annotated[Path, typer.Argument(metavar="PATH", help="A checkpoint, or an artifact folder.", show_default=False)]
Fp16 = Annotated[bool, typer.Option("--fp16", help="Step the checkpoint through a text: what can float16 not hold?")]
Text = Annotated[Path | None, text_file(" Implies --fp16.")]
Tokens = Annotated[int, typer.Option(min=2, callback=few, help="With --fp16: tokens of the text to read.")]


def inspect(
    path: Thing,
    *,
    fp16: Fp16 = False,
    text: Text = None,
    tokens: Tokens = 256,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What a checkpoint or an artifact is; nothing in it is executed.

    Version, shapes, parameters and state; of an artifact also its files, whose hashes are verified.

    With --fp16 the checkpoint's step runs in float32, and every tensor of it is measured: what overflows in float16,
    what rounds to zero, which decays round to 1.0, and which layers that puts at risk.

    Examples:
      rwkv-export inspect RWKV-x070-World-0.1B.pth
      rwkv-export inspect out/austen-7-1.9m.onnx-cpu.fp32
      rwkv-export inspect out/austen-7-1.9m.onnx-cpu.fp32 --json | jq .manifest
      rwkv-export inspect RWKV-x070-World-0.1B.pth --fp16 --tokens 1024
    """
    from rwkv_export import inspection, output

    with output.talking(quiet) as progress:
        found = inspection.audit(path, text, tokens, progress) if fp16 or text else inspection.inspect(path, progress)
    if json:
        output.print_json(found)
    else:
        inspection.show(found)
