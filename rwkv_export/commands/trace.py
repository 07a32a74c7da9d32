"""`rwkv-export trace`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export.options import LnXEps, Quiet, Seed, Source, State, few, output_file, text_file

Out = Annotated[Path, output_file("--out", "The trace, a .safetensors file.", "-o")]
Tokens = Annotated[int, typer.Option(min=4, callback=few, help="Tokens to record.")]
Text = Annotated[Path | None, text_file()]
Every = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Keep the state and all logits of every so many tokens.",
        show_default="a quarter of all",
    ),
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


def trace(
    checkpoint: Source = None,
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
    """Record what a checkpoint computes, to validate where it is not.

    A small file: the tokens, the likeliest logits of each, all logits and the states at some, hashes of everything.
    `validate --trace` takes it instead of the checkpoint, and needs no torch.

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
