"""`rwkv-export synth`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export import completion
from rwkv_export.options import Json, Quiet, Seed, output_file

Version = Annotated[
    str, typer.Option(metavar="NAME", autocompletion=completion.versions, help="4, 5.0, 5.1, 5.2, 6, 7 or 7a.")
]
Size = Annotated[
    str, typer.Option(metavar="NAME", autocompletion=completion.sizes, help="tiny, or 0.1b to 7b as official models.")
]
Layers = Annotated[int | None, typer.Option(help="Depth.", show_default="of the size")]
Width = Annotated[int | None, typer.Option(help="Width, a multiple of the head size.", show_default="of the size")]
HeadSize = Annotated[int | None, typer.Option(help="Width of a head.", show_default="64")]
Vocab = Annotated[int | None, typer.Option(help="Rows of the embedding.", show_default="of the size")]
Dtype = Annotated[str, typer.Option(metavar="NAME", autocompletion=completion.dtypes, help="bf16, fp16 or fp32.")]
Out = Annotated[Path, output_file("--out", "A .pth or .safetensors file.", "-o")]


def synth(
    *,
    version: Version = "7",
    size: Size = "tiny",
    layers: Layers = None,
    width: Width = None,
    head_size: HeadSize = None,
    vocab: Vocab = None,
    seed: Seed = 0,
    dtype: Dtype = "bf16",
    out: Out,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a checkpoint with random weights at real shapes.

    For tests and speed: it says nothing sensible. The same arguments give the same tensors. Prints the file's name, or
    with --json what is in it.

    Examples:
      rwkv-export synth -o tiny.pth
      rwkv-export synth --version 6 --size 0.1b --seed 1 -o random-v6.pth
      rwkv-export synth --layers 4 --width 256 --vocab 65536 -o small.safetensors
    """
    from exporter.synth import synth as write
    from rwkv_export import inspection, output

    with output.talking(quiet) as progress:
        write(
            version,
            size=size,
            layers=layers,
            width=width,
            head_size=head_size,
            vocab=vocab,
            seed=seed,
            dtype=dtype,
            out=out,
            progress=progress,
        )
    inspection.deliver([out], json=json)
