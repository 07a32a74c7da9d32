"""Reads an operation's signature and turns constants into what its parameters ask for; runs nothing."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from runtimes.contract import Array

Arrays = tuple[Array, ...]
Ints = tuple[int, ...]
Bools = tuple[bool, ...]

Compute = Callable[..., Any]
"""An operation's function: parameters by MIL name, annotated with Array, Arrays, or one of the kinds below."""

_CONVERT: Mapping[Any, Callable[[Array], object]] = {
    Array: lambda value: value,
    Arrays: lambda value: value,
    int: lambda value: int(value.item()),
    float: lambda value: float(value.item()),
    bool: lambda value: bool(value.item()),
    Ints: lambda value: tuple(int(item) for item in value.reshape(-1)),
    Bools: lambda value: tuple(bool(item) for item in value.reshape(-1)),
}


@dataclass(frozen=True)
class Parameter:
    """What one parameter takes: `kind` is Array, Arrays (several values), Ints, Bools, int, float, bool or str."""

    name: str
    kind: Any
    required: bool

    @property
    def numeric(self) -> bool:
        """Whether it takes part in the arithmetic, so that half precision applies to it."""
        return self.kind in (Array, Arrays)

    def convert(self, value: Array | str) -> object:
        """The value as `kind`; raises ValueError."""
        if isinstance(value, str) or self.kind is str:
            if not (isinstance(value, str) and self.kind is str):
                raise ValueError(f"{self.name} has the wrong type")
            return value
        return _CONVERT[self.kind](value)


@functools.cache
def parameters(compute: Compute) -> Mapping[str, Parameter]:
    """The parameters of an operation's function by name."""
    hints = typing.get_type_hints(compute)
    return {
        name: Parameter(name, _without_none(hints[name]), parameter.default is inspect.Parameter.empty)
        for name, parameter in inspect.signature(compute).parameters.items()
    }


def check_names(compute: Compute, given: Collection[str]) -> None:
    """Raise ValueError unless `given` has every required parameter and no unknown one."""
    known = parameters(compute)
    for name in given:
        if name not in known:
            raise ValueError(f"it has no parameter {name}, only {', '.join(known)}")
    for name, parameter in known.items():
        if parameter.required and name not in given:
            raise ValueError(f"it lacks its parameter {name}")


def _without_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
    return hint
