"""What the shell completes after Tab; what takes torch to know is remembered in the user's cache folder."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypedDict

import typer

ROOT = Path(__file__).parents[1]
WATCHED = ("exporter", "runtimes")
BREAKS = ":="
"""What bash ends a word at."""


class Target(TypedDict):
    """Of one target what can be completed; an option without values takes any."""

    summary: str
    precisions: list[str]
    options: dict[str, list[str]]


class Known(TypedDict):
    """All that is remembered; `of` changes with the files that it comes from."""

    of: str
    targets: dict[str, Target]
    places: list[str]
    versions: list[str]
    sizes: list[str]
    dtypes: list[str]


def targets(incomplete: str) -> Iterator[tuple[str, str]]:
    """Target names with their summaries."""
    return ((name, each["summary"]) for name, each in _known()["targets"].items() if name.startswith(incomplete))


def precisions(context: typer.Context, incomplete: str) -> list[str]:
    """Precisions of the targets that were named, or of all."""
    return _start(incomplete, (name for each in _chosen(context) for name in each["precisions"]))


def options(context: typer.Context, incomplete: str) -> list[str]:
    """NAME=VALUE, or NAME= where a target takes any value."""
    pairs = (pair for each in _chosen(context) for pair in each["options"].items())
    return _start(incomplete, (f"{name}={value}" for name, values in pairs for value in values or [""]))


def socs(context: typer.Context, incomplete: str) -> list[str]:
    """Processors to compile for."""
    return _start(incomplete, (soc for each in _chosen(context) for soc in each["options"].get("soc", ())))


def names(context: typer.Context, incomplete: str) -> list[str]:
    """Naming schemes."""
    return _start(incomplete, (name for each in _chosen(context) for name in each["options"].get("names", ())))


def places(incomplete: str) -> list[str]:
    """Every "runtime:device", usable here or not."""
    return _start(incomplete, _known()["places"])


def versions(incomplete: str) -> list[str]:
    """RWKV versions."""
    return _start(incomplete, _known()["versions"])


def sizes(incomplete: str) -> list[str]:
    """Official sizes."""
    return _start(incomplete, _known()["sizes"])


def dtypes(incomplete: str) -> list[str]:
    """Types of stored weights."""
    return _start(incomplete, _known()["dtypes"])


def environments(incomplete: str) -> list[str]:
    """What `setup` can set up."""
    from runtimes import environments as folder
    from runtimes.registry import plugins

    return _start(incomplete, plugins(folder))


@contextlib.contextmanager
def answering(variable: str) -> Iterator[None]:
    """Around the program while a shell asks it what to complete: mends what typer tells it, and what bash asks.

    Descriptions stay one line each: shells take every line for an answer. bash splits words at ":" and "=", and wants
    the last piece completed: words are joined, and answers cut to that piece.

    variable: where typer is told what is asked
    """
    asked = os.environ.get(variable)
    if asked:
        os.environ["COLUMNS"] = "10000"
    if asked != "complete_bash":
        yield
        return
    pieces, current = os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"])
    words = joined(pieces[: current + 1])
    os.environ.update(COMP_WORDS="\n".join(words), COMP_CWORD=str(len(words) - 1))
    before = words[-1][: max(map(words[-1].rfind, BREAKS)) + 1]
    answers = io.StringIO()
    try:
        with contextlib.redirect_stdout(answers):
            yield
    finally:
        for answer in answers.getvalue().splitlines():
            print(answer.removeprefix(before))


def joined(pieces: list[str]) -> list[str]:
    """["--on", "ort", ":", "c"] as ["--on", "ort:c"]."""
    words: list[str] = []
    for number, piece in enumerate(pieces):
        after = number > 0 and set(pieces[number - 1]) <= set(BREAKS) and pieces[number - 1]
        if words and (after or (piece and set(piece) <= set(BREAKS))):
            words[-1] += piece
        else:
            words.append(piece)
    return words


def _start(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


def _chosen(context: typer.Context) -> list[Target]:
    """The targets that the words so far name, or all."""
    given = context.params.get("targets") or context.params.get("target") or ()
    known = _known()["targets"]
    named = [given] if isinstance(given, str) else given
    return [known[name] for name in named if name in known] or list(known.values())


def _known() -> Known:
    """What is remembered, found out again where the files it comes from have changed."""
    from runtimes.environments import cache_folder
    from runtimes.files import write_text_atomically

    path, now = cache_folder() / "completion.json", _fingerprint()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        remembered: Known = json.loads(path.read_text(encoding="utf-8"))
        if remembered["of"] == now:
            return remembered
    known = _found(now)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, json.dumps(known))
    return known


def _fingerprint() -> str:
    files = [file.stat() for folder in WATCHED for file in (ROOT / folder).rglob("*.py")]
    return f"{sys.prefix} {len(files)} {max(file.st_mtime_ns for file in files)}"


def _found(now: str) -> Known:
    from exporter import registry, synth
    from exporter import versions as models
    from runtimes import registry as runtimes

    return Known(
        of=now,
        targets={
            name: Target(
                summary=target.summary,
                precisions=list(target.precisions),
                options={option.name: list(option.values) for option in target.options},
            )
            for name, target in registry.targets().items()
        },
        places=[f"{name}:{device}" for name in runtimes.names() for device in runtimes.load(name).DEVICES],
        versions=list(models.by_version()),
        sizes=list(synth.SIZES),
        dtypes=list(synth.DTYPES),
    )
