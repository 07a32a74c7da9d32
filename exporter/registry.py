"""Finds export targets by listing exporter/targets; holds no list of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import cast

from exporter import targets as folder
from exporter.contract import Target, TargetFile
from runtimes.errors import Missing, WrongCall, did_you_mean
from runtimes.registry import load_plugin, plugins


@cache
def _files() -> dict[str, TargetFile]:
    files: dict[str, TargetFile] = {}
    for name in plugins(folder):
        module = load_plugin(folder, name, "TARGETS", "missing", "refuse", "export")
        for target in module.TARGETS:
            if target.name in files:
                other = cast(ModuleType, files[target.name])
                raise TypeError(f"{other.__file__} and {module.__file__} both have a target {target.name!r}")
            files[target.name] = cast(TargetFile, module)
    return files


def targets() -> dict[str, Target]:
    """Target name -> target, in name order."""
    known = {target.name: target for file in _files().values() for target in file.TARGETS}
    return dict(sorted(known.items()))


def file_of(name: str) -> TargetFile:
    """The file that a target is in."""
    return _files()[name]


def missing(name: str) -> str | None:
    """Why `name` cannot be exported on this machine, or None."""
    return _files()[name].missing()


def find(name: str) -> tuple[Target, TargetFile]:
    """The target called `name` and its file; raises WrongCall with a suggestion, or Missing."""
    known = targets()
    if name not in known:
        raise WrongCall(f"unknown target {name!r}", hint=did_you_mean(name, known))
    if reason := missing(name):
        raise Missing(f"target {name} cannot be exported here: {reason}")
    return known[name], _files()[name]


def choose_precision(target: Target, wanted: str | None) -> str:
    """The wanted precision, or the target's default; raises WrongCall."""
    if wanted is None:
        return next(iter(target.precisions))
    if wanted not in target.precisions:
        hint = did_you_mean(wanted, target.precisions)
        raise WrongCall(f"target {target.name} has no precision {wanted!r}", hint=hint)
    return wanted


def choose_options(chosen: Sequence[Target], given: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Target name -> all its options with values; raises WrongCall for an option no target has, or a bad value."""
    known = {option.name: option for target in chosen for option in target.options}
    for name, value in given.items():
        if name not in known:
            names = ", ".join(target.name for target in chosen)
            hint = did_you_mean(name, known) if known else "these targets have no options"
            raise WrongCall(f"no option {name!r} in {names}", hint=hint)
        if known[name].values and value not in known[name].values:
            raise WrongCall(f"option {name} cannot be {value!r}", hint=did_you_mean(value, known[name].values))
    read = {name: known[name].read(value) for name, value in given.items()}
    return {
        target.name: {option.name: read.get(option.name, option.default) for option in target.options}
        for target in chosen
    }
