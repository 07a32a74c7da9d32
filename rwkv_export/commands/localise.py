"""`rwkv-export localise`."""

from __future__ import annotations

from typing import Annotated

import typer

from rwkv_export import completion
from rwkv_export.options import Artifact, Checkpoint, Json, Quiet, Steps

Place = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="RUNTIME:DEVICE",
        autocompletion=completion.places,
        show_default="the place it was made for",
        help="Where to run. Values inside the graph are seen in ort:cpu and mil:cpu.",
    ),
]


def localise(
    artifact: Artifact,
    *,
    on: Place = None,
    checkpoint: Checkpoint = None,
    steps: Steps = 4,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find where an artifact first departs from its checkpoint.

    Names the layer, the operation and the likely cause. Every value inside the artifact's graph is compared with what
    the checkpoint's own operation gives for the same inputs, so that an error shows where it is made and not where it
    is inherited. Where a runtime shows no values, what each layer returns as its state is compared. Exit code 1: it
    departs.

    Examples:
      rwkv-export localise out/austen-7-1.9m.onnx-cpu.fp32
      rwkv-export localise out/austen-7-1.9m.coreml.fp16 --on mil:cpu --steps 16
      rwkv-export localise out/austen-7-1.9m.onnx-cpu.int4 --json | jq .first
    """
    from rwkv_export import localised, output
    from validation.localise import localise as search

    with output.talking(quiet) as progress:
        found = search(artifact, on=on, checkpoint=checkpoint, tokens=steps, progress=progress)
    if json:
        output.print_json(found)
    else:
        localised.print_found(found)
    raise typer.Exit(int(found.lost))
