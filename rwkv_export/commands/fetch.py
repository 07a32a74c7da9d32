"""`rwkv-export fetch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkv_export.options import OUTPUT, Json, Quiet

Reference = Annotated[
    str, typer.Argument(metavar="OWNER/REPO[/FILE]", help="A file, or a repository that is a model folder.")
]
Into = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FOLDER",
        file_okay=False,
        help="Where to put it.",
        show_default="this folder",
        rich_help_panel=OUTPUT,
    ),
]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit.", show_default="the newest")]


def fetch(
    reference: Reference,
    *,
    into: Into = None,
    revision: Revision = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download a checkpoint from the Hugging Face Hub.

    Resumed after a break, checked against its hash. Prints where it is, or with --json what is in it. HF_ENDPOINT names
    a mirror; `hf auth login` opens gated ones.

    Examples:
      rwkv-export fetch BlinkDL/rwkv-7-world/RWKV-x070-World-0.1B-v2.8.pth
      rwkv-export fetch fla-hub/rwkv7-0.1B-g1 -o models
    """
    from exporter.fetch import fetch as download
    from rwkv_export import inspection, output

    with output.talking(quiet) as progress:
        path = download(reference, into=into, revision=revision, progress=progress)
    inspection.deliver([path], json=json)
