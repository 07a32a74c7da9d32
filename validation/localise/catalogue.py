"""Reads causes.toml, the table of known traps; recognises none of them."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("causes.toml")


@dataclass(frozen=True)
class Cause:
    """A known trap; fields as causes.toml says. `detail` is what was seen this time."""

    name: str
    says: str
    why: str
    fix: str
    detail: str = ""


@functools.cache
def causes() -> Mapping[str, Cause]:
    """Every trap by name, in the order in which they are looked for."""
    document = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {name: Cause(name, **texts) for name, texts in document.items()}
