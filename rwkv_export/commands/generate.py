"""`rwkv-export generate`."""

from __future__ import annotations

from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from rwkv_export import completion
from rwkv_export.options import Artifact, Json, Quiet, few

if TYPE_CHECKING:
    from runtimes.generate import Spent

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; without it, a new one.")]
On = Annotated[
    str | None,
    typer.Option(
        metavar="RUNTIME:DEVICE",
        autocompletion=completion.places,
        show_default="the place it was made for",
        help="Where to run.",
    ),
]
Tokens = Annotated[int, typer.Option(min=0, callback=few, help="At most this many tokens.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")]
TopP = Annotated[float, typer.Option(max=1, help="Draw from the likeliest tokens that sum to this.")]
Seed = Annotated[int | None, typer.Option(min=0, help="The same seed gives the same text.", show_default="random")]


def generate(
    artifact: Artifact,
    prompt: Prompt = "",
    *,
    on: On = None,
    tokens: Tokens = 200,
    temperature: Temperature = 1.0,
    top_p: TopP = 0.9,
    seed: Seed = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Continue a prompt with an artifact, as it runs on the device.

    The text is printed as it comes, then its speed.

    Examples:
      rwkv-export generate out/austen-7-1.9m.onnx-cpu.fp32 "The river"
      rwkv-export generate out/austen-7-1.9m.coreml.fp16 "The river" --on mil:cpu
      rwkv-export generate out/austen-7-1.9m.onnx-cpu.fp32 --temperature 0
    """
    from runtimes.generate import Spent, continue_text
    from rwkv_export import output

    spent = Spent()
    pieces = continue_text(
        artifact, prompt, on=on, tokens=tokens, temperature=temperature, top_p=top_p, seed=seed, spent=spent
    )
    if json:
        text = "".join(pieces)
        output.print_json({"artifact": str(artifact), "prompt": prompt, "text": text, **asdict(spent)})
        return
    with output.talking(quiet) as progress, progress(f"loading {artifact}"):
        first = next(pieces)
    output.stream(chain([prompt, first], pieces))
    output.remark(_speed(spent), quiet=quiet)


def _speed(spent: Spent) -> str:
    """In the session's own times: sampling and printing are not in them."""
    words = f"prompt: {_rate(spent.prompt_tokens, spent.prompt_seconds)}"
    return f"{words}, then {_rate(spent.tokens, spent.seconds)}" if spent.tokens else words


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens} tokens at {tokens / seconds:.0f} tok/s" if seconds else f"{tokens} tokens"
