"""The values of a tape by size, so that the one nearest to a wanted value is found at once; knows no reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from runtimes.contract import Array
from validation.localise.tape import Op, Tape

FLOOR = 1e-2
"""Values that are smaller everywhere are measured against this: relative to nought, rounding is everything, and ONNX
Runtime's sigmoid is off by up to 6e-8 however small its result."""


def stacked(values: Sequence[Any]) -> Array:
    """The numbers of a value at all tokens, flat, in float32."""
    return np.concatenate([np.asarray(value, np.float32).reshape(-1) for value in values])


def largest(numbers: Array) -> float:
    """The largest finite magnitude; 0 where there is none."""
    finite = numbers[np.isfinite(numbers)]
    return float(np.abs(finite).max()) if finite.size else 0.0


def distance(wanted: Array, found: Array, scale: float) -> float:
    """The largest difference against `scale`; infinite where one is finite and the other not, or both in other ways."""
    with np.errstate(invalid="ignore", over="ignore"):
        same = (wanted == found) | (np.isnan(wanted) & np.isnan(found))
        apart = np.where(same, 0.0, np.abs(wanted.astype(np.float64) - found))
    return float(apart.max() / scale) if np.isfinite(apart).all() else float("inf")


def turned(values: Sequence[Tensor]) -> Sequence[Tensor] | None:
    """With the last two axes exchanged, where those are a matrix."""
    first = values[0]
    return [value.mT for value in values] if first.dim() >= 3 and min(first.shape[-2:]) > 1 else None


class Bank:
    """Values by how many numbers they have; operations by what they give."""

    def __init__(self, tape: Tape) -> None:
        self.numbers = {name: stacked(values) for name, values in tape.values.items() if values[0].size > 1}
        self.producer: dict[str, Op] = {name: op for op in tape.ops for name in op.outputs}
        groups: dict[int, list[str]] = defaultdict(list)
        for name, numbers in self.numbers.items():
            groups[numbers.size].append(name)
        self._groups: Mapping[int, Sequence[str]] = groups
        self._rows = {size: np.stack([self.numbers[name] for name in names]) for size, names in groups.items()}

    def of_size(self, size: int) -> Sequence[str]:
        """The values of so many numbers, in order."""
        return self._groups.get(size, ())

    def near(self, wanted: Array, scale: float, limit: float, without: Collection[str] = ()) -> list[str]:
        """The values no further than `limit` from the wanted one, the nearest first."""
        names = self._groups.get(wanted.size)
        if names is None:
            return []
        rows = self._rows[wanted.size]
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.abs(rows - wanted)
        if not np.isfinite(wanted).all():
            apart = np.where((rows == wanted) | (np.isnan(rows) & np.isnan(wanted)), 0, apart)
        worst = apart.max(1) / scale
        order = np.argsort(worst, kind="stable")
        return [names[at] for at in order if worst[at] <= limit and names[at] not in without]

    def sources(self, name: str, known: Collection[str], depth: int = 4) -> set[str]:
        """The nearest values among `known` that a value was computed from."""
        op = self.producer.get(name)
        if op is None:
            return set()
        return self._among(op.inputs, known, depth)

    def _among(self, names: Iterable[str], known: Collection[str], depth: int) -> set[str]:
        found: set[str] = set()
        for name in names:
            if name in known:
                found.add(name)
            elif depth:
                found |= self.sources(name, known, depth - 1)
        return found
