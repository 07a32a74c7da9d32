"""`rwkv-export sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export import completion
from rwkv_export.options import STDOUT, LnXEps, Quiet, Source, TextTokens, output_file, text_file

Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        "-p",
        metavar="NAME",
        autocompletion=completion.precisions,
        help="As `export` would quantise.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        "-t",
        metavar="NAME",
        autocompletion=completion.targets,
        help="Whose quantiser.",
        show_default="the first target that has the precision",
    ),
]
Text = Annotated[Path | None, text_file()]
Grow = Annotated[float, typer.Option(help="How much larger all matrices may get by keeping some: 0.25 is a quarter.")]
JsonFile = Annotated[
    Path | None,
    output_file(
        "--json",
        "Also write all numbers to this file as they come; what it has already is not measured again; - prints them.",
    ),
]
Page = Annotated[Path | None, output_file("--report", "Also write a page with plots.")]
KeepFile = Annotated[Path | None, output_file("--keep", "Also write the recommended list, for `export -O keep=FILE`.")]


def sensitivity(
    checkpoint: Source = None,
    *,
    precision: Precision,
    target: Target = None,
    text: Text = None,
    tokens: TextTokens = 512,
    grow: Grow = 0.25,
    ln_x_eps: LnXEps = None,
    json: JsonFile = None,
    report: Page = None,
    keep: KeepFile = None,
    quiet: Quiet = False,
) -> None:
    """Which matrices lose most when quantised, and which to keep.

    Measures the mean KL between what the model predicts of a text in float32 and with one matrix quantised; the same
    for each layer and for everything. No artifact is made: matrices are rounded by the quantiser that `export` uses,
    which takes the list as `-O keep=FILE`. Stopped in between, a run with --json goes on where it was.

    Examples:
      rwkv-export sensitivity -p int4
      rwkv-export sensitivity model.pth -p 8da4w --json s.json --report s.html
      rwkv-export sensitivity model.pth -t qnn -p a16w4 --keep keep.txt
    """
    from exporter.model import open_model
    from rwkv_export import output, sensitivities
    from validation.quality import open_text
    from validation.sensitivity import measure

    with output.talking(quiet) as progress:
        found = measure(
            open_model(checkpoint, ln_x_eps=ln_x_eps),
            open_text(text),
            precision=precision,
            target=target,
            tokens=tokens,
            grow=grow,
            known=None if json == STDOUT else json,
            save=sensitivities.saver(json),
            progress=progress,
        )
    sensitivities.deliver(found, json=json, report=report, keep=keep)
