"""`rwkv-export quality`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export.options import Artifacts, Checkpoint, JsonFile, On, Quiet, TextTokens, text_file

Text = Annotated[Path | None, text_file()]
Lambada = Annotated[
    Path | None,
    typer.Option(metavar="FILE", exists=True, dir_okay=False, help='Also guess last words: JSON lines with "text".'),
]
Mmlu = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Also answer questions with four choices: .csv, or JSON lines with question, choices and answer.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Examples to take of each.", show_default="all")]


def quality(
    artifacts: Artifacts,
    *,
    on: On = None,
    checkpoint: Checkpoint = None,
    text: Text = None,
    tokens: TextTokens = 512,
    lambada: Lambada = None,
    mmlu: Mmlu = None,
    limit: Limit = None,
    json: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """What each precision costs, as one table beside the checkpoint.

    Size, perplexity, KL, agreement and questions: artifacts of one checkpoint and the checkpoint itself in float32 read
    the same text and answer the same questions. Nothing is downloaded: files of questions are yours. Exit code 1: a
    mean KL breaks the bound of its precision.

    Examples:
      rwkv-export quality out/*
      rwkv-export quality out/* --text book.txt --tokens 4096 --json q.json
      rwkv-export quality out/* --lambada lambada_test.jsonl --limit 500
      rwkv-export quality out/* --mmlu anatomy_test.csv
    """
    from rwkv_export import output, qualities, results
    from validation.evaluation import evaluate
    from validation.runner import exit_code

    with results.kept(json, quiet=quiet) as keep:
        with output.talking(quiet) as progress:
            found = evaluate(
                artifacts,
                on=on,
                checkpoint=checkpoint,
                text=text,
                tokens=tokens,
                lambada=lambada,
                mmlu=mmlu,
                limit=limit,
                keep=keep,
                progress=progress,
            )
        qualities.deliver(found, json=json)
    raise typer.Exit(exit_code(found))
