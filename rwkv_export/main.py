"""The `rwkv-export` program: its list of commands and its exit codes; each command is a file of its own."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, cast

import typer
from typer.core import TyperGroup

from rwkv_export import completion, failure
from rwkv_export.commands.bench import bench
from rwkv_export.commands.compare import compare
from rwkv_export.commands.demo import demo
from rwkv_export.commands.export import export
from rwkv_export.commands.fetch import fetch
from rwkv_export.commands.gate import gate
from rwkv_export.commands.generate import generate
from rwkv_export.commands.inspect import inspect
from rwkv_export.commands.lint import lint
from rwkv_export.commands.localise import localise
from rwkv_export.commands.matrix import matrix
from rwkv_export.commands.quality import quality
from rwkv_export.commands.report import report
from rwkv_export.commands.sensitivity import sensitivity
from rwkv_export.commands.serve import serve
from rwkv_export.commands.setup import setup
from rwkv_export.commands.synth import synth
from rwkv_export.commands.targets import targets
from rwkv_export.commands.trace import trace
from rwkv_export.commands.validate import validate
from rwkv_export.help import tidy

NAME = "rwkv-export"
BROKEN_PIPE = 141
"""What a shell reports for a program ended by SIGPIPE; typer itself leaves with 130 after SIGINT."""

PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Start": (demo, targets, setup, fetch, synth),
    "Make artifacts": (inspect, export, generate),
    "Prove": (validate, localise, trace, lint, quality, sensitivity),
    "Measure": (bench, report, compare, gate),
    "On other devices": (serve, matrix),
}

app = typer.Typer(name=NAME, rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]})
for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        from importlib.metadata import version

        print(NAME, version(NAME))
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Export RWKV language models to phones and NPUs, and prove that what runs there is right and fast.

    Start here, with the model that comes along:
      rwkv-export demo
      rwkv-export export -t onnx-cpu
      rwkv-export validate out/*

    Results go to stdout, progress and remarks to stderr. Exit codes:
      0 all is well       2 the call makes no sense        70 our bug
      1 a check failed    3 this machine lacks something   130 interrupted
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


def program() -> TyperGroup:
    """The commands as typer runs them."""
    group = cast(TyperGroup, typer.main.get_command(app))
    tidy(group)
    return group


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code. Prints errors instead of raising them."""
    try:
        code = program().main(list(arguments), prog_name=NAME, standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        code = BROKEN_PIPE
    except SystemExit as exit:
        # How typer and rich leave when the reader of a pipe went away; their code, 1, would say that a check failed.
        if not isinstance(exit.__context__, BrokenPipeError):
            raise
        code = BROKEN_PIPE
    except Exception as error:
        code = failure.report(error)
    if code == BROKEN_PIPE:
        # Nobody reads stdout any more: give the interpreter something else to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code if isinstance(code, int) else 0


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    with completion.answering("_RWKV_EXPORT_COMPLETE"):
        code = run(sys.argv[1:])
    sys.exit(code)
