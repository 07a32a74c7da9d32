"""Packages in turn whose ports have the same names in each, as rwkv-mobile loads them: what to call them outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runtimes.contract import Array
from runtimes.manifest import Graph, Manifest
from runtimes.mil.chain import Whole
from runtimes.mil.evaluate import Evaluator, Named

Rename = Callable[[str], str]


def outside(manifest: Manifest, graph: Graph, number: int) -> Rename:
    """How the ports of package `number`, from 1, are called outside: as they are, but with rwkv-mobile's names.

    There `out0` of one package is `in0` of the next, `v_first_out` of the first is `v_first_in` of all others, and
    whatever else a package has is its own: "2/state_wkv_in".
    """
    count = 1 + len(graph.then)
    if count == 1 or manifest.target.options.get("names") != "rwkv-mobile":
        return str
    handed = {"v_first_in": "v_first", "v_first_out": "v_first", "in0": f"{number - 1}/out0"}
    ends = ({"in0": "in0"} if number == 1 else {}) | ({"out0": "out0"} if number == count else {})
    names = handed | ends
    return lambda name: names.get(name, f"{number}/{name}")


class Renamed:
    """An evaluator whose ports have other names outside. Pure."""

    def __init__(self, evaluator: Evaluator, rename: Rename) -> None:
        self._evaluator, self._rename = evaluator, rename
        inner = evaluator.function
        inputs, states, types = (
            {rename(name): kind for name, kind in ports.items()}
            for ports in (inner.inputs, inner.states, inner.output_types())
        )
        self.function = Whole(inner.name, inputs, states, inner.operations, types)

    def run(self, inputs: Mapping[str, Array], states: Mapping[str, Array]) -> tuple[Named, Named]:
        """As an evaluator's."""
        inner, rename = self._evaluator.function, self._rename
        outputs, after = self._evaluator.run(
            {name: inputs[rename(name)] for name in inner.inputs},
            {name: states[rename(name)] for name in inner.states},
        )
        return {rename(name): value for name, value in outputs.items()}, {
            rename(name): value for name, value in after.items()
        }
