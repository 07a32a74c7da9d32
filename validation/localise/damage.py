"""How constants of an operation differ from the checkpoint's parameter: shifted, cut, damaged; it runs nothing."""

from __future__ import annotations

import numpy as np
from torch import fx

from runtimes.contract import Array
from validation.localise.bank import FLOOR, distance, largest, stacked
from validation.localise.case import Case


def found(case: Case, node: fx.Node) -> str | None:
    """How the constant that stands for a parameter differs from it by more than the artifact's precision makes it."""
    op, wanted = case.match.op, stacked(case.value(node)[:1])
    name = case.step.stored[node.name]
    alike = [array.reshape(-1) for array in (op.constants() if op else {}).values() if array.size == wanted.size]
    size = max(largest(wanted), FLOOR)
    if alike:
        nearest = min(alike, key=lambda array: _spread(wanted, array))
        if distance(wanted, nearest, size) <= case.match.level or _is_turned(case, node, alike):
            return None
        return f"{name}: {_how(wanted, nearest, size * case.match.level)}"
    quantised = op is not None and any(weight.startswith(name) for weight in op.weights)
    if quantised and _is_matrix(node):
        return f"{name}, as it is stored in few bits, is not what the checkpoint has"
    return None


def _is_matrix(node: fx.Node) -> bool:
    """Whether a parameter is a matrix."""
    return len(node.meta["val"].shape) == 2


def _spread(wanted: Array, array: Array) -> float:
    return float(np.abs(np.nan_to_num(wanted - array, posinf=1e30, neginf=-1e30)).mean())


def _is_turned(case: Case, node: fx.Node, alike: list[Array]) -> bool:
    value = case.value(node)[0]
    if value.dim() != 2:
        return False
    size = max(largest(stacked([value])), FLOOR)
    return any(distance(stacked([value.mT]), array, size) <= case.match.level for array in alike)


def _how(wanted: Array, array: Array, allowed: float) -> str:
    """In words: values moved by some places, or so many that differ, from where on."""
    for by in range(1, min(65, wanted.size // 2)):
        if np.abs(wanted[by:] - array[:-by]).max() <= allowed or np.abs(wanted[:-by] - array[by:]).max() <= allowed:
            return f"all values are {by} place{'s' if by > 1 else ''} off"
    off = ~(np.abs(wanted - array) <= allowed)
    first, last = int(off.argmax()), int(off.size - off[::-1].argmax())
    return f"{int(off.sum()):,} of {off.size:,} values differ, between {first:,} and {last:,}"
