"""Arguments and options that several commands share; each command adds its own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from rwkv_export import completion

OUTPUT = "Output"
"""The panel of options that say what is written, in every help."""

MOST_TOKENS = 1 << 20

STDOUT = Path("-")
"""Given as a file to write JSON to: stdout, in place of the tables."""


def pairs(settings: Iterable[str]) -> dict[str, str]:
    """["names=rwkv-mobile"] as a dict; raises WrongCall."""
    from runtimes.errors import WrongCall

    split = [setting.partition("=") for setting in settings]
    for name, equals, value in split:
        if not (name and equals and value):
            raise WrongCall(
                f"option {name + equals + value!r} is not NAME=VALUE", hint="for example -O names=rwkv-mobile"
            )
    return {name: value for name, _, value in split}


def sizes(text: str) -> tuple[int, ...]:
    """ "16,64" as numbers; raises WrongCall."""
    from runtimes.errors import WrongCall

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise WrongCall(f"{text!r} is not a list of sizes", hint="for example --prefill 16,64") from error


def writable(path: Path | None) -> Path | None:
    """Refuses a file that could not be written, before the work whose result it is for."""
    if path and not path.parent.is_dir():
        raise typer.BadParameter(f"folder {path.parent} does not exist")
    if path and not os.access(path.parent, os.W_OK):
        raise typer.BadParameter(f"folder {path.parent} is not writable")
    return path


def filled(path: Path | None) -> Path | None:
    """Refuses a text without a byte."""
    if path and not path.stat().st_size:
        raise typer.BadParameter(f"file {path} is empty")
    return path


def few(tokens: int | None) -> int | None:
    """Refuses more tokens than anyone waits for: a slip of the hand."""
    if tokens and tokens > MOST_TOKENS:
        raise typer.BadParameter(f"{tokens} are too many, {MOST_TOKENS} at most")
    return tokens


def output_file(flag: str, text: str, *short: str, panel: str = OUTPUT) -> Any:
    """An option that names a file to write."""
    return typer.Option(
        flag, *short, metavar="FILE", dir_okay=False, callback=writable, help=text, rich_help_panel=panel
    )


def text_file(implied: str = "") -> Any:
    """An option that names a text to read; `implied` ends its help."""
    words = f"The text to read, UTF-8.{implied}"
    default = "one that comes along, which no bundled model was trained on"
    return typer.Option(metavar="FILE", exists=True, dir_okay=False, callback=filled, help=words, show_default=default)


Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Only results and errors, no progress.", rich_help_panel=OUTPUT)
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)]
JsonFile = Annotated[
    Path | None,
    output_file("--json", "Also write all numbers and raw samples to this file; - prints them in place of the tables."),
]
Junit = Annotated[Path | None, output_file("--junit", "Also write a JUnit XML report, for CI.")]
Markdown = Annotated[Path | None, output_file("--markdown", "Also write the tables as Markdown, for a job's summary.")]
Source = Annotated[
    Path | None,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A .pth or .safetensors file, or a Hugging Face folder.",
        show_default="the bundled model",
    ),
]
Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact folder.", show_default=False)]
Artifacts = Annotated[
    list[Path],
    typer.Argument(metavar="ARTIFACT", help="Artifact folders, or folders of such.", show_default=False),
]
On = Annotated[
    list[str] | None,
    typer.Option(
        "--on",
        metavar="RUNTIME:DEVICE",
        autocompletion=completion.places,
        show_default="the place each artifact was made for",
        help="Where to run: ort:cpu, ssh://user@host/ort:cpu. `rwkv-export targets` lists them. Repeatable.",
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        exists=True, metavar="FILE", help="What to compare with.", show_default="the checkpoint it was made from"
    ),
]
Steps = Annotated[int, typer.Option(min=1, callback=few, help="Tokens to compare over.")]
Prompt = Annotated[int, typer.Option(min=1, callback=few, help="Tokens of the prompt that prefill is measured with.")]
Tokens = Annotated[int, typer.Option(min=1, callback=few, help="Tokens to generate, each one sample.")]
TextTokens = Annotated[int, typer.Option(min=1, callback=few, help="Tokens of the text to predict.")]
Threads = Annotated[
    int,
    typer.Option(
        min=0,
        envvar="RWKV_EXPORT_THREADS",
        help="Threads of ONNX Runtime or ExecuTorch; 0: as many as fit.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
LnXEps = Annotated[
    float | None,
    typer.Option(help="Group norm epsilon.", show_default="64e-5, as official models have"),
]
State = Annotated[
    Path | None,
    typer.Option(metavar="FILE", exists=True, help="A tuned initial state for the model to start from."),
]
