"""`rwkv-export lint`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export.options import Json, Quiet

Things = Annotated[
    list[Path],
    typer.Argument(metavar="ARTIFACT", help="Artifact folders, or .mlpackage folders.", show_default=False),
]


def lint(artifacts: Things, *, json: Json = False, quiet: Quiet = False) -> None:
    """What is known to keep a Core ML program off the Neural Engine.

    Read from the saved file without running it. The engine has no public specification: docs/lint.md says who reports
    each rule. So no finding is no proof that a model runs there, only a Mac or an iPhone shows that. Exit code 1: a
    rule found an error; warnings alone do not fail.

    Examples:
      rwkv-export lint out/austen-7-1.9m.coreml-ane.fp16
      rwkv-export lint out/* --json | jq '.[].findings'
    """
    from rwkv_export import findings, output
    from validation.lint import linter

    with output.talking(quiet) as progress:
        found = linter.lint(artifacts, progress)
    if json:
        output.print_json(found)
    else:
        findings.print_lint(found)
    raise typer.Exit(int(any(each.count("error") for each in found)))
