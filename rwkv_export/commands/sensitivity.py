"""`rwkv-export sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export.options import Quiet, complete_targets, output_file, text_file

Checkpoint = Annotated[
    Path | None,
    typer.Argument(help="A .pth or .safetensors file, or a Hugging Face folder.", show_default="the bundled model"),
]
Precision = Annotated[str, typer.Option("--precision", "-p", metavar="NAME", help="As `export` would quantise.")]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        "-t",
        metavar="NAME",
        autocompletion=complete_targets,
        help="Whose quantiser.",
        show_default="the first target that has the precision",
    ),
]
Text = Annotated[Path | None, text_file()]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens of the text to predict.")]
Grow = Annotated[float, typer.Option(help="By what part of their quantised size keeping may grow the matrices.")]
LnXEps = Annotated[float | None, typer.Option(help="Group norm epsilon, where a checkpoint was trained with another.")]
JsonFile = Annotated[
    Path | None,
    output_file(
        "--json", "Also write all numbers to this file as they come; what it has already is not measured again."
    ),
]
Page = Annotated[Path | None, output_file("--report", "Also write a page with plots.", "-o")]
KeepFile = Annotated[Path | None, output_file("--keep", "Also write the recommended list, for `export -O keep=FILE`.")]


def sensitivity(
    checkpoint: Checkpoint = None,
    *,
    precision: Precision,
    target: Target = None,
    text: Text = None,
    tokens: Tokens = 512,
    grow: Grow = 0.25,
    ln_x_eps: LnXEps = None,
    json: JsonFile = None,
    report: Page = None,
    keep: KeepFile = None,
    quiet: Quiet = False,
) -> None:
    """What quantising each matrix costs on a text when everything else is float32, and which are worth keeping.

    The mean KL between what the model predicts in float32 and with one matrix quantised; the same for each layer and
    for everything. No artifact is made: matrices are rounded by the quantiser that `export` uses, and takes the
    list as `-O keep=FILE`. Stopped in between, a run with --json goes on where it was.

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
            known=json,
            save=sensitivities.saver(json),
            progress=progress,
        )
    sensitivities.deliver(found, report=report, keep=keep)
