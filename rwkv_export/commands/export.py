"""`rwkv-export export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export import completion
from rwkv_export.options import OUTPUT, Json, LnXEps, Quiet, Source, State, pairs, sizes

Targets = Annotated[
    list[str],
    typer.Option(
        "--target",
        "-t",
        metavar="NAME",
        autocompletion=completion.targets,
        help="What to make; `rwkv-export targets` lists them. Repeatable.",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        "-p",
        metavar="NAME",
        autocompletion=completion.precisions,
        help="Of the weights.",
        show_default="the target's first",
    ),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where artifact folders go.", rich_help_panel=OUTPUT)
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-O",
        metavar="NAME=VALUE",
        autocompletion=completion.options,
        help="A choice the target offers. Repeatable.",
    ),
]
Prefill = Annotated[
    str,
    typer.Option(metavar="T,T", help="Also write graphs that take T tokens of a prompt at once: 16,64."),
]
Names = Annotated[
    str | None,
    typer.Option(
        "--names",
        "--layout",
        metavar="SCHEME",
        autocompletion=completion.names,
        help="Short for -O names=SCHEME, such as rwkv-mobile.",
    ),
]
Soc = Annotated[
    str | None,
    typer.Option(metavar="NAME", autocompletion=completion.socs, help="Short for -O soc=NAME, such as sm8750."),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Text to calibrate on, UTF-8, for precisions that do.",
        show_default="one that comes along",
    ),
]


def export(
    checkpoint: Source = None,
    *,
    targets: Targets,
    precision: Precision = None,
    out: Out = Path("out"),
    options: Options = None,
    prefill: Prefill = "",
    names: Names = None,
    soc: Soc = None,
    calibration: Calibration = None,
    ln_x_eps: LnXEps = None,
    state: State = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn a checkpoint into artifact folders, one for each target.

    In each: graph files, tokenizer, manifest.json and a README. Prints the folders, one a line. Folders appear whole or
    not at all; the same input gives the same bytes.

    Examples:
      rwkv-export export -t onnx-cpu
      rwkv-export export RWKV-x070-World-0.1B.pth -t onnx-cpu -t coreml -p fp16
      rwkv-export export model.pth -t onnx-cpu --prefill 16 --names rwkv-mobile
      rwkv-export export -t qnn --soc sm8750 -p a16w8 --calibration book.txt
    """
    import exporter
    from rwkv_export import inspection, output

    short = [f"{name}={value}" for name, value in (("names", names), ("soc", soc)) if value]
    chosen = pairs([*(options or ()), *short])
    with output.talking(quiet) as progress:
        artifacts = exporter.export(
            checkpoint,
            targets=targets,
            precision=precision,
            out=out,
            options=chosen,
            prefill=sizes(prefill),
            ln_x_eps=ln_x_eps,
            state=state,
            calibration=calibration,
            progress=progress,
        )
    inspection.deliver(artifacts, json=json)
