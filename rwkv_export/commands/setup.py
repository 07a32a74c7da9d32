"""`rwkv-export setup`."""

from __future__ import annotations

from typing import Annotated

import typer

from rwkv_export import completion
from rwkv_export.options import Json, Quiet

Name = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        autocompletion=completion.environments,
        help="What to set up.",
        show_default="list what there is",
    ),
]


def setup(name: Name = None, *, json: Json = False, quiet: Quiet = False) -> None:
    """Install a toolchain that needs a Python environment of its own.

    Without a name, list them. It goes into the user's cache folder, whole or not at all, with exact versions; one that
    is there already costs nothing. Removing its folder undoes it.

    Examples:
      rwkv-export setup
      rwkv-export setup rknn
    """
    from exporter import environments
    from rwkv_export import output

    chosen = environments.known() if name is None else {name: environments.find(name)}
    if name is not None:
        with output.talking(quiet) as progress:
            environments.make(chosen[name], progress=progress)
    rows = [
        {
            "name": each.name,
            "state": each.state(),
            "folder": str(each.folder),
            "missing": each.missing(),
            "summary": each.summary,
        }
        for each in chosen.values()
    ]
    if json:
        output.print_json(rows)
        return
    for row in rows:
        print(f"{row['name']}  {row['state']}  {row['folder'] if row['state'] == 'ready' else row['missing']}")
        print(f"    {row['summary']}")
