"""How `--help` is laid out, where typer would not do it so: prose flows, and types are told shortly or not at all."""

from __future__ import annotations

import inspect
from typing import cast

from typer import Context
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

TYPES = {"<bool>": "", "<int>": "X", "<int range>": "X", "<float>": "X", "<float range>": "X"}
"""What stands for a value whose option names it by no word of its own."""

UNDIMMED = "[not dim]"


def tidy(group: TyperGroup) -> None:
    """Lay out the help of a program and of all its commands."""
    context = Context(group, **group.context_settings)
    _tidy(group, context)
    for command in group.commands.values():
        _tidy(cast(TyperCommand, command), Context(command, parent=context))


def flowing(text: str) -> str:
    """A docstring whose paragraphs typer wraps at any width, with indented lines as they are.

    Typer keeps the line ends of all paragraphs but the first, prints them dim, and takes indentation away below the
    line that they start with: an empty line there keeps it.
    """
    lines = [""]
    for line in inspect.cleandoc(text).splitlines():
        if lines[-1][:1].strip() and line[:1].strip():
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    first, _, rest = "\n".join(lines[1:]).partition("\n\n")
    return f"{first}\n\n\n{UNDIMMED}{rest}[/]" if rest else first


def _tidy(command: TyperCommand | TyperGroup, context: Context) -> None:
    command.help = flowing(command.help or "")
    for parameter in command.get_params(context):
        if isinstance(parameter, TyperArgument):
            parameter.display_type_rich = _nothing  # type: ignore[assignment, method-assign]
        elif isinstance(parameter, TyperOption) and parameter.metavar is None:
            parameter.metavar = TYPES.get(parameter.display_type(context))


def _nothing(ctx: Context) -> str:
    return ""
