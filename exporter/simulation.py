"""What a target's quantising makes of single matrices, so that its cost can be measured; it exports nothing.

A target file that quantises may have a function `simulation(precision)`, which returns a `Simulation` or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor

from exporter import registry
from runtimes.errors import WrongCall


@dataclass(frozen=True)
class Spread:
    """The least and the largest value that went into a product and came out of it, over a calibration text."""

    taken: tuple[float, float]
    given: tuple[float, float]


@dataclass(frozen=True)
class Matrix:
    """A matrix (N, K) of products as it is stored.

    kind:    "4 bits, a scale for each 32 inputs"
    nbytes:  values, scales and zero points
    product: (T, K) float32 -> (T, N) float32 with the bias, each token as if it were alone
    """

    kind: str
    nbytes: int
    product: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Table:
    """A table (V, C) that rows are looked up in, as it is stored; `rows` are what is found, (V, C) float32."""

    kind: str
    nbytes: int
    rows: Tensor


class Simulation(Protocol):
    """One precision of a target.

    says:     what of an artifact's arithmetic is simulated and what not, a sentence
    wide:     bytes a value of a matrix that is kept
    balanced: whether the export evens out the channels of squared ReLUs first
    spreads:  whether `matrix` needs to know the spread of its inputs and outputs
    """

    says: str
    wide: int
    balanced: bool
    spreads: bool

    def matrix(self, name: str, weight: Tensor, bias: Tensor | None, spread: Spread | None) -> Matrix | None:
        """The parameter `name` (N, K) of a linear as stored, or None where it stays as it is."""

    def table(self, name: str, values: Tensor) -> Table | None:
        """The parameter `name` (V, C) that is looked up, as stored, or None where it stays as it is."""


def find(precision: str, target: str | None) -> tuple[str, Simulation]:
    """The target's simulation of a precision, of the first target that has one unless told; raises WrongCall."""
    known = _known()
    if target is None:
        target = next((name for name, found in known.items() if precision in found), None)
    if target is None or precision not in known.get(target, {}):
        listed = "; ".join(f"{name}: {', '.join(found)}" for name, found in known.items())
        who = f"target {target} does not quantise" if target else "no target quantises"
        raise WrongCall(
            f"{who} as {precision!r} in a way that can be measured matrix by matrix", hint=f"known: {listed}"
        )
    return target, known[target][precision]


def _known() -> Mapping[str, Mapping[str, Simulation]]:
    """By target and precision; what simulates the most comes first."""
    found: dict[str, dict[str, Simulation]] = {}
    for name, target in registry.targets().items():
        maker = cast("Callable[[str], Simulation | None] | None", getattr(registry.file_of(name), "simulation", None))
        made = {precision: maker(precision) for precision in target.precisions} if maker else {}
        if some := {precision: simulation for precision, simulation in made.items() if simulation}:
            found[name] = some
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))
