"""`rwkv-export targets`."""

from __future__ import annotations

from rwkv_export.options import Json, Quiet


def targets(json: Json = False, quiet: Quiet = False) -> None:
    """What this machine can export and run; what is missing, and why.

    Examples:
      rwkv-export targets
      rwkv-export targets --json | jq '.places[] | select(.missing == null)'
    """
    from rwkv_export import output, survey, tables

    with output.talking(quiet) as progress:
        found = survey.survey(progress=progress)
    if json:
        output.print_json(found)
    else:
        tables.print_survey(found)
