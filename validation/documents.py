"""JSON documents with a schema number: written so that they appear whole, read strictly; it knows none of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from runtimes.errors import WrongCall
from runtimes.files import write_text_atomically
from runtimes.schema import SchemaError, from_plain, to_plain

T = TypeVar("T")


def write(document: Any, path: Path) -> None:
    """Write a dataclass tree as JSON, atomically."""
    write_text_atomically(path, json.dumps(to_plain(document), indent=1) + "\n")


def read(cls: type[T], path: Path, *, schema: int, what: str, hint: str) -> T:
    """Read a document of `schema`; raises WrongCall naming the file, `what` it is not, and where it does not fit."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict) and document.get("schema") != schema:
            raise SchemaError(f"schema is {document.get('schema')!r}, this version reads {schema}")
        return from_plain(cls, document)
    except OSError as error:
        raise WrongCall(f"cannot read {path}: {error.strerror}") from error
    except (SchemaError, ValueError, RecursionError) as error:
        raise WrongCall(f"{path} is not {what}: {error}", hint=hint) from error
