"""`rwkv-export compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export.options import Json, Quiet

Old = Annotated[Path, typer.Argument(metavar="OLD", exists=True, dir_okay=False, help="Results from before.")]
New = Annotated[Path, typer.Argument(metavar="NEW", exists=True, dir_okay=False, help="Results from now.")]
Slower = Annotated[float, typer.Option(min=1, help="Ratio of medians that matters.")]
Alpha = Annotated[float, typer.Option(min=0, max=1, help="Significance level of the rank test.")]


def compare(
    old: Old, new: New, *, slower: Slower = 1.05, alpha: Alpha = 0.01, json: Json = False, quiet: Quiet = False
) -> None:
    """What got slower or less accurate between two results files.

    Files of `validate --json` or `bench --json`. What has lost its proof counts as worse, too. Speed counts as changed
    when the medians differ by the ratio and a Mann-Whitney U test on the raw samples says that this is no accident.
    Exit code 1: something got worse.

    Examples:
      rwkv-export compare yesterday.json today.json
      rwkv-export compare main.json branch.json --slower 1.1 --json
    """
    from rwkv_export import output, tables
    from validation import comparison, outcome

    before, after = outcome.read(old), outcome.read(new)
    found = comparison.compare(before, after, slower=slower, alpha=alpha)
    for changed in comparison.machine_changes(before.machine, after.machine):
        output.remark(f"not the same machine or packages: {changed}", quiet=quiet)
    for name in comparison.artifact_changes(before, after):
        output.remark(f"not the same artifact: {name} has other files than before", quiet=quiet)
    if json:
        output.print_json(found)
    else:
        tables.print_changes(found)
    raise typer.Exit(int(comparison.regressed(found)))
