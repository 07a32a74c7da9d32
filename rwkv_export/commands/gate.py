"""`rwkv-export gate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rwkv_export.options import (
    Artifacts,
    Checkpoint,
    JsonFile,
    Junit,
    Markdown,
    On,
    Prompt,
    Quiet,
    Steps,
    Threads,
    Tokens,
)

Baseline = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, metavar="FILE", help="Results of `bench` or `gate` made here before."),
]
FailOn = Annotated[
    str | None,
    typer.Option(
        metavar="CHECK,CHECK",
        help="What fails: parity, as `validate` has it; latency:1.10x, above 1.10 times the baseline's.",
        show_default="parity, and latency:1.10x with a baseline",
    ),
]


def gate(
    artifacts: Artifacts,
    *,
    on: On = None,
    fail_on: FailOn = None,
    baseline: Baseline = None,
    checkpoint: Checkpoint = None,
    steps: Steps = 64,
    prompt: Prompt = 64,
    tokens: Tokens = 128,
    threads: Threads = 0,
    json: JsonFile = None,
    junit: Junit = None,
    markdown: Markdown = None,
    quiet: Quiet = False,
) -> None:
    """Fail a build that got wrong or slower.

    For continuous integration. Validates and times each artifact, and says what is wrong or slower than before in a
    sentence each. Slower means that the medians differ by more than the ratio, that a Mann-Whitney U test on the raw
    samples says that this is no accident, and that a second measurement says so too. `bench --json` makes a baseline.
    Exit code 3 also where a baseline cannot tell.

    Examples:
      rwkv-export gate out/* --markdown summary.md --junit gate.xml
      rwkv-export gate out/* --baseline baseline.json
      rwkv-export gate out/* --baseline b.json --fail-on latency:1.25x
    """
    from runtimes.threads import VARIABLE
    from rwkv_export import output, results
    from validation.gate import gate as run

    os.environ[VARIABLE] = str(threads)
    with results.kept(json, quiet=quiet) as keep:
        with output.talking(quiet) as progress:
            found = run(
                artifacts,
                on=on,
                fail_on=fail_on,
                baseline=baseline,
                checkpoint=checkpoint,
                steps=steps,
                prompt=prompt,
                tokens=tokens,
                keep=keep,
                progress=progress,
            )
        code = results.deliver(found, json=json, junit=junit, markdown=markdown)
    raise typer.Exit(code)
