"""`rwkv-export matrix`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export.options import OUTPUT, Quiet

Plan = Annotated[Path, typer.Argument(metavar="PLAN", exists=True, dir_okay=False, help="What to run where.")]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        metavar="FOLDER",
        file_okay=False,
        help="Gets results of each cell, and report.html.",
        rich_help_panel=OUTPUT,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Of a Dask cluster.", show_default="this machine, one cell after another"),
]
Retries = Annotated[int, typer.Option(min=0, help="Further tries of a cell that crashed.")]
Again = Annotated[bool, typer.Option("--again", help="Also run what has a result already.")]


def matrix(
    plan: Plan,
    *,
    out: Out = Path("matrix"),
    scheduler: Scheduler = None,
    retries: Retries = 2,
    again: Again = False,
    quiet: Quiet = False,
) -> None:
    r"""Validate and time many artifacts on many devices; one report.

    A plan names artifact folders and devices; what a device can read makes cells:
      artifacts = ["out/*"]              # beside the plan
      \[\[device]]
      name = "laptop"
      on = ["ort:cpu", "pte:cpu"]        # or what each was made for
      \[\[device]]
      name = "pixel"
      targets = ["executorch-xnnpack"]   # or all
      needs = "sm8750"                   # what its worker advertises
      \[work]                             # or both, with these numbers
      validate = true
      bench = true
      steps = 64
      prompt = 64
      tokens = 128

    A run that was stopped goes on; what was missing or broke is tried again.
    With --scheduler the cells run on the workers of a Dask cluster, started as
      dask worker ADDRESS --resources "sm8750=1"
    and never two at once on one machine.

    Examples:
      rwkv-export matrix plan.toml
      rwkv-export matrix plan.toml --scheduler tcp://10.0.0.5:8786 -o lab
    """
    from rwkv_export import output, results

    with output.talking(quiet) as progress:
        from validation.matrix.sweep import sweep

        found = sweep(plan, out, scheduler=scheduler, retries=retries, again=again, progress=progress)
    code = results.deliver_many(found, out / "report.html")
    output.remark(f"wrote {out / 'report.html'}", quiet=quiet)
    raise typer.Exit(code)
