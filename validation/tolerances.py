"""Reads tolerances.toml, the one table of what an artifact's error may be; it compares and judges nothing."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

from runtimes import manifest
from runtimes.errors import WrongCall, did_you_mean
from runtimes.schema import SchemaError, from_plain
from validation.outcome import Bound

TABLE = Path(__file__).with_name("tolerances.toml")


def bound(name: str) -> Bound:
    """The row called `name`; raises WrongCall with a suggestion."""
    rows = load(TABLE)
    if name not in rows:
        raise WrongCall(f"unknown tolerance {name!r}", hint=did_you_mean(name, rows))
    return rows[name]


def held_to(target: manifest.Target) -> Bound:
    """The row that an artifact is held to; raises WrongCall as `bound` does.

    It is the one that this version's target names for the precision, whatever the artifact's own manifest says: a wider
    one would let a wrong artifact pass. Of targets that this version does not know, and on devices without torch, where
    no target can be asked, the manifest's.
    """
    try:
        from exporter import registry
    except ImportError:
        return bound(target.tolerance)
    known = registry.targets().get(target.name)
    return bound(known.precisions.get(target.precision, target.tolerance) if known else target.tolerance)


@functools.cache
def load(path: Path) -> Mapping[str, Bound]:
    """Every row of a table by name; raises WrongCall naming the key that is unknown, missing or out of range."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: _row(name, values, document) for name, values in document.items()}
    except ValueError as error:
        raise WrongCall(f"{path}: {error}", hint="each row is [name] with the keys of Bound") from error


def _row(name: str, values: object, others: Collection[str]) -> Bound:
    if not isinstance(values, dict) or "name" in values:
        raise SchemaError(f"unknown key {name}.name" if isinstance(values, dict) else f"{name} is not a table")
    row = from_plain(Bound, {"name": name, **values}, name)
    if not (row.max_abs > 0 and row.kl > 0 and row.state_rel > 0 and 0 < row.top1 <= 1):
        raise SchemaError(f"{name}: max_abs, kl and state_rel must be positive, top1 in (0, 1]")
    if row.text_kl is not None and not row.text_kl > 0:
        raise SchemaError(f"{name}: text_kl must be positive, or left out")
    for key, other in {"itself": row.itself, "kernel": row.kernel}.items():
        if other is not None and other not in others:
            raise SchemaError(f"{name}.{key} is {other!r}, which is no row")
    if not row.reason.strip():
        raise SchemaError(f"{name}.reason is empty")
    return row
