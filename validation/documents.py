"""JSON documents with a schema number: written so that they appear whole, read strictly; it knows none of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from runtimes.errors import WrongCall
from runtimes.files import write_text_atomically
from runtimes.schema import SchemaError, from_plain, to_plain

T = TypeVar("T")


def write(document: Any, path: Path) -> None:
    """Write a dataclass tree as JSON, atomically."""
    write_text_atomically(path, json.dumps(to_plain(document), indent=1, allow_nan=False) + "\n")


def read(cls: type[T], path: Path, *, schema: int, what: str, hint: str) -> T:
    """Read a document of `schema`; raises WrongCall naming the file, `what` it is not, and where it does not fit."""
    (document,) = _read(cls, path, lambda text: [text], schema=schema, what=what, hint=hint)
    return document


def read_lines(cls: type[T], path: Path, *, schema: int, what: str, hint: str) -> list[T]:
    """The same from a file with a document a line; a last line without its end was being written and is left out."""
    return _read(cls, path, lambda text: text.split("\n")[:-1], schema=schema, what=what, hint=hint)


def _read(
    cls: type[T], path: Path, split: Callable[[str], Sequence[str]], *, schema: int, what: str, hint: str
) -> list[T]:
    try:
        return [_parsed(cls, text, schema) for text in split(path.read_text(encoding="utf-8"))]
    except OSError as error:
        raise WrongCall(f"cannot read {path}: {error.strerror}") from error
    except (SchemaError, ValueError, RecursionError) as error:
        raise WrongCall(f"{path} is not {what}: {error}", hint=hint) from error


def _parsed(cls: type[T], text: str, schema: int) -> T:
    document = json.loads(text)
    if isinstance(document, dict) and document.get("schema") != schema:
        raise SchemaError(f"schema is {document.get('schema')!r}, this version reads {schema}")
    return from_plain(cls, document)
