"""`rwkv-export trace`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export.options import Quiet, Seed, output_file, text_file

Checkpoint = Annotated[
    Path | None,
    typer.Argument(help="A .pth or .safetensors file, or a Hugging Face folder.", show_default="the bundled model"),
]
Out = Annotated[Path, output_file("--out", "The trace, a .safetensors file.", "-o")]
Tokens = Annotated[int, typer.Option(min=4, help="Tokens to record.")]
Text = Annotated[Path | None, text_file()]
Every = Annotated[
    int | None,
    typer.Option(min=1, help="Keep the state and all logits of every so many tokens.", show_default="a quarter of all"),
]
Top = Annotated[
    int | None,
    typer.Option(
        "--top",
        min=10,
        help="Logits to keep of the other tokens, the likeliest.",
        show_default="64, or all where that takes little room",
    ),
]
LnXEps = Annotated[float | None, typer.Option(help="Group norm epsilon, where a checkpoint was trained with another.")]
State = Annotated[
    Path | None, typer.Option(metavar="FILE", exists=True, help="The tuned initial state that artifacts ship with.")
]


def trace(
    checkpoint: Checkpoint = None,
    *,
    out: Out,
    tokens: Tokens = 64,
    text: Text = None,
    every: Every = None,
    top: Top = None,
    seed: Seed = 0,
    ln_x_eps: LnXEps = None,
    state: State = None,
    quiet: Quiet = False,
) -> None:
    """Record what a checkpoint computes over a text, so that artifacts can be validated where it is not.

    A small file: the tokens, the likeliest logits of each, all logits and the states at some, hashes of everything.
    `validate --trace` takes it instead of the checkpoint, and needs no torch. Exit code 2: the call or the checkpoint
    makes no sense.

    Examples:
      rwkv-export trace -o austen.trace.safetensors
      rwkv-export trace model.pth -o model.trace.safetensors --text book.txt
      rwkv-export trace model.pth -o long.trace.safetensors --tokens 4096
    """
    from rwkv_export import output
    from validation.recording import described, record_trace

    with output.talking(quiet) as progress:
        record_trace(
            checkpoint,
            out=out,
            tokens=tokens,
            text=text,
            every=every,
            likeliest=top,
            seed=seed,
            ln_x_eps=ln_x_eps,
            state=state,
            progress=progress,
        )
    output.stdout().print(described(out), soft_wrap=True)
