"""Frozen dataclasses to JSON and back, strictly: unknown keys, missing keys and wrong types are refused by path.

Texts lose what could steer a terminal, numbers that fit into no 64 bits are refused: documents come from anybody.
NaN and the infinities, which JSON has not, are the texts that Protocol Buffers' JSON has for them.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from runtimes.errors import harmless

T = TypeVar("T")
LARGEST = (1 << 63) - 1
"""The largest whole number that is read."""
NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
"""What is written for a float that is not finite, by its repr."""


class SchemaError(ValueError):
    """A document does not fit its dataclass; the text names the path, e.g. `graphs[0].tokens`."""


def to_plain(value: Any) -> Any:
    """A dataclass tree as dicts, lists and scalars, keys in declaration order."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return NOT_FINITE[repr(float(value))]
    return value


def from_plain(cls: type[T], document: Any, path: str = "") -> T:
    """Build `cls` from what json.loads returned; raises SchemaError."""
    if not isinstance(document, dict):
        raise SchemaError(f"{path or 'document'} is {_kind(document)}, expected an object")
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in document:
        if key not in fields:
            raise SchemaError(f"unknown key {_join(path, key)}")
    arguments = {}
    for name, field in fields.items():
        if name in document:
            arguments[name] = _convert(hints[name], document[name], _join(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SchemaError(f"missing key {_join(path, name)}")
    return cls(**arguments)


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as `hint` says; of unions only `X | None` is known."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(arguments[0], value, path)
    if origin is not None:
        return _collected(origin, arguments, value, path)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value, path)
    if isinstance(hint, type) and issubclass(hint, Enum):
        if value not in [member.value for member in hint]:
            raise SchemaError(f"{path} is {_kind(value)}, expected one of {', '.join(m.value for m in hint)}")
        return hint(value)
    if hint is float:
        return _float(value, path)
    return value if hint is Any else _expect(hint, value, path)


def _float(value: Any, path: str) -> float:
    if value in NOT_FINITE.values():
        return float(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(_expect(int, value, path) if whole else _expect(float, value, path))


def _collected(origin: Any, arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    if origin is tuple:
        items = _expect(list, value, path)
        return tuple(_convert(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(items))
    table = _expect(dict, value, path)
    return {harmless(key): _convert(arguments[1], item, _join(path, key)) for key, item in table.items()}


def _expect(kind: type[T], value: Any, path: str) -> T:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SchemaError(f"{path} is {_kind(value)}, expected {kind.__name__}")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise SchemaError(f"{path} is a number of more than 64 bits")
    return cast(T, harmless(value)) if isinstance(value, str) else value


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"[:80]
