"""Arguments and options that several commands share, with their completion; each command adds its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer


def complete_targets(incomplete: str) -> Iterator[tuple[str, str]]:
    """Target names with their summaries."""
    from exporter import registry

    return ((name, target.summary) for name, target in registry.targets().items() if name.startswith(incomplete))


def complete_places(incomplete: str) -> Iterator[str]:
    """Every "runtime:device", usable here or not."""
    from runtimes import registry

    places = (f"{name}:{device}" for name in registry.names() for device in registry.load(name).DEVICES)
    return (place for place in places if place.startswith(incomplete))


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


def output_file(flag: str, text: str, *short: str) -> Any:
    """An option that names a file to write."""
    return typer.Option(flag, *short, metavar="FILE", dir_okay=False, callback=writable, help=text)


def text_file(implied: str = "") -> Any:
    """An option that names a text to read; `implied` ends its help."""
    words = f"The text to read, UTF-8.{implied}"
    default = "one that comes along, which no bundled model was trained on"
    return typer.Option(metavar="FILE", exists=True, dir_okay=False, help=words, show_default=default)


Quiet = Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="Only results and errors, no progress.")]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Print the result as JSON.")]
JsonFile = Annotated[Path | None, output_file("--json", "Also write all numbers and raw samples to this file.")]
Junit = Annotated[Path | None, output_file("--junit", "Also write a JUnit XML report, for CI.")]
Markdown = Annotated[Path | None, output_file("--markdown", "Also write the tables as Markdown, for a job's summary.")]
Artifacts = Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Artifact folders.", show_default=False)]
On = Annotated[
    list[str] | None,
    typer.Option(
        "--on",
        metavar="RUNTIME:DEVICE",
        autocompletion=complete_places,
        show_default="the place each artifact was made for",
        help="Where to run, such as ort:cpu, or ssh://user@host/ort:cpu. Repeatable. `rwkv-export targets` lists them.",
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        exists=True, metavar="FILE", help="What to compare with.", show_default="the checkpoint it was made from"
    ),
]
Steps = Annotated[int, typer.Option(min=1, help="Tokens to compare over.")]
Prompt = Annotated[int, typer.Option(min=1, help="Tokens of the prompt that prefill is measured with.")]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens to generate, each one sample.")]
Threads = Annotated[
    int,
    typer.Option(min=0, envvar="RWKV_EXPORT_THREADS", help="Threads of ONNX Runtime or ExecuTorch; 0: as many as fit."),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
