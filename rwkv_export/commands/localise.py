"""`rwkv-export localise`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export.options import Checkpoint, Json, Quiet, complete_places

Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact folder.", show_default=False)]
Place = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="RUNTIME:DEVICE",
        autocompletion=complete_places,
        show_default="the place it was made for",
        help="Where to run. Values inside the graph are seen in ort:cpu and mil:cpu.",
    ),
]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens to compare over.")]


def localise(
    artifact: Artifact,
    *,
    on: Place = None,
    checkpoint: Checkpoint = None,
    tokens: Tokens = 4,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the first place where an artifact is no longer its checkpoint: the layer, the operation, the likely cause.

    Every value inside the artifact's graph is compared with what the checkpoint's own operation gives for the same
    inputs, so that an error shows where it is made and not where it is inherited. Where a runtime shows no values, what
    each layer returns as its state is compared. Exit code 0: nothing is lost. 1: parity is lost. 3: it cannot run here.

    Examples:
      rwkv-export localise out/tiny.onnx-cpu.fp32
      rwkv-export localise out/tiny.coreml.fp16 --on mil:cpu --tokens 16
      rwkv-export localise out/tiny.onnx-cpu.int4 --json | jq .first.cause
    """
    from rwkv_export import localised, output
    from validation.localise import localise as search

    with output.talking(quiet) as progress:
        found = search(artifact, on=on, checkpoint=checkpoint, tokens=tokens, progress=progress)
    if json:
        output.print_json(found)
    else:
        localised.print_found(found)
    raise typer.Exit(int(found.lost))
