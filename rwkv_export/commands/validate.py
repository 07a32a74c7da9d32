"""`rwkv-export validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export.options import (
    STDOUT,
    Artifacts,
    Checkpoint,
    JsonFile,
    Junit,
    Markdown,
    On,
    Quiet,
    Seed,
    TextTokens,
    few,
    text_file,
)

Trace = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", exists=True, dir_okay=False, help="Compare with a file of `rwkv-export trace` instead."
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(min=1, callback=few, help="Tokens to compare over.", show_default="64, or all of the trace"),
]
Quality = Annotated[
    bool, typer.Option("--quality", help="Read a text at any precision, not only quantised: KL and perplexity.")
]
Text = Annotated[Path | None, text_file(" Implies --quality.")]
Lint = Annotated[
    bool,
    typer.Option("--lint/--no-lint", help="Whether artifacts fail that would be kept off the Neural Engine."),
]


def validate(
    artifacts: Artifacts,
    *,
    on: On = None,
    checkpoint: Checkpoint = None,
    trace: Trace = None,
    steps: Steps = None,
    seed: Seed = 0,
    quality: Quality = False,
    text: Text = None,
    quality_tokens: TextTokens = 512,
    lint: Lint = True,
    json: JsonFile = None,
    junit: Junit = None,
    markdown: Markdown = None,
    quiet: Quiet = False,
) -> None:
    """Run artifacts and compare all they compute with the checkpoint.

    Every logit and every state tensor, token by token. Two readings, both must hold: local, where the reference's state
    is written before every step, and free, where errors accumulate. Quantised artifacts also read a text beside their
    checkpoint: the mean KL between what the two predict has a bound. Exit code 1: something is wrong, or ran elsewhere
    than asked.

    Examples:
      rwkv-export validate out/*
      rwkv-export validate out/austen-7-1.9m.onnx-cpu.fp32 --on ort:cpu-fused
      rwkv-export validate out/* --json results.json --junit parity.xml
      rwkv-export validate out/* --text book.txt --quality-tokens 4096
      rwkv-export validate out/* --trace model.trace.safetensors
    """
    import validation
    from rwkv_export import localised, output, results

    with results.kept(json, quiet=quiet) as keep:
        with output.talking(quiet) as progress:
            found = validation.validate(
                artifacts,
                on=on,
                checkpoint=checkpoint,
                trace=trace,
                steps=steps,
                seed=seed,
                quality=quality,
                text=text,
                quality_tokens=quality_tokens,
                lint=lint,
                keep=keep,
                progress=progress,
            )
        code = results.deliver(found, json=json, junit=junit, markdown=markdown)
        if json != STDOUT:
            localised.point(found, artifacts)
    raise typer.Exit(code)
