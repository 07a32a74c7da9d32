"""A wrong result with all around it, and what it would be if something before it were another; names no trap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import fx

from validation.localise.bank import distance, stacked
from validation.localise.catalogue import Cause
from validation.localise.reference import Step, Values, call
from validation.localise.tape import Op, Tape
from validation.localise.walk import EXACT, Match, Walked, comparable, scale


@dataclass(frozen=True)
class Blame:
    """Why a result is wrong: the operation of the artifact that gives the wrong value, and that of the reference."""

    cause: Cause
    op: Op | None
    node: fx.Node


@dataclass(frozen=True)
class Case:
    """One wrong result.

    place: where the artifact ran, "mil:cpu"
    flat:  products of matrices of rank 3 in its graph, where the place does not show its values
    """

    step: Step
    tape: Tape
    walked: Walked
    match: Match
    place: str
    flat: Sequence[Op] = ()

    @property
    def node(self) -> fx.Node:
        """The reference's operation."""
        return self.match.node

    @cached_property
    def suspects(self) -> list[fx.Node]:
        """The operation and those before it that the artifact has no value of, the nearest first."""
        return [self.node, *(node for node in self.before if not self.seen(node))]

    @cached_property
    def before(self) -> list[fx.Node]:
        """What the operation takes, the nearest first: up to values that the artifact has."""
        found: dict[fx.Node, None] = {}
        edge = list(self.node.all_input_nodes)
        while edge:
            found |= dict.fromkeys(edge)
            sources = (source for node in edge if not self.seen(node) for source in node.all_input_nodes)
            edge = [source for source in dict.fromkeys(sources) if source not in found]
        return list(found)

    def value(self, node: fx.Node) -> Values:
        """What an operation before this one gave, or should have given; what this one should have given."""
        return list(self.match.wanted) if node is self.node else self.walked.env[node.name]

    def known(self) -> Iterator[tuple[str, Values]]:
        """All values but parameters, the state by its names."""
        states = dict(zip(self.step.inputs[1:], self.step.state_names(), strict=True))
        for name, values in self.walked.env.items():
            if name not in self.step.weights and name != self.node.name and comparable(values):
                yield states.get(name, name), values

    def off(self, node: fx.Node, values: Sequence[Any]) -> float:
        """How far the artifact's result is from what it would be if one of `suspects` or `before` gave these values."""
        try:
            like = self.value(node)
            given = [value.reshape(shaped.shape) for value, shaped in zip(values, like, strict=True)]
            made = given if node is self.node else self.rerun(self.node, {node.name: given})
        except (RuntimeError, IndexError):  # shapes that do not fit explain nothing
            return math.inf
        return distance(stacked(made), stacked(self.match.found), scale(self.node, self.walked.env))

    def is_it(self, off: float) -> bool:
        """Whether a result as far off as this is the artifact's."""
        return off <= max(self.match.level, 0.02 * min(self.match.own, 1.0)) and off < 0.5 * self.match.own

    def explained_by(self, node: fx.Node, values: Sequence[Any]) -> bool:
        """Whether the result is the artifact's if one of `suspects` or `before` gave these values."""
        return self.is_it(self.off(node, values))

    def giver(self, values: Sequence[Any] | None) -> Op | None:
        """The operation that gave these values, among those since the last values that are right."""
        if values is None:
            return None
        wanted = stacked(values)
        for op in between(self.tape, self.walked, self.match):
            for name in op.outputs:
                numbers = stacked(self.tape.values[name]) if name in self.tape.values else wanted[:0]
                if numbers.size == wanted.size and distance(wanted, numbers, 1) < EXACT:
                    return op
        return None

    def rerun(self, node: fx.Node, instead: Mapping[str, Values], arguments: Sequence[Any] | None = None) -> Values:
        """What an operation gives where others, by name, gave something else."""
        known = dict(instead)
        for between in self._unseen if instead else ():
            if between is not node and between.name not in known and _takes(between, known):
                known[between.name] = self._called(between, known)
        return self._called(node, known, arguments)

    @cached_property
    def _unseen(self) -> list[fx.Node]:
        """Of `suspects`, those before the operation, in the order in which they run."""
        inside = set(self.suspects[1:])
        return [node for node in self.step.nodes if node in inside]

    def _called(self, node: fx.Node, known: Mapping[str, Values], arguments: Sequence[Any] | None = None) -> Values:
        values = [known.get(source.name, self.walked.env[source.name]) for source in node.all_input_nodes]
        return call(node, list(zip(*values, strict=True)), arguments)

    def seen(self, node: fx.Node) -> bool:
        """Whether the artifact has this value, or it comes from outside."""
        return node.op != "call_function" or node.name in self.walked.names


def _takes(node: fx.Node, known: Mapping[str, Values]) -> bool:
    return any(source.name in known for source in node.all_input_nodes)


def between(tape: Tape, walked: Walked, match: Match) -> list[Op]:
    """The artifact's operations behind a value, back to values that are those of operations of the reference."""
    if match.op is None and match.name is not None:
        return []
    producer = {name: op for op in tape.ops for name in op.outputs}
    known, found = set(walked.names.values()), list[Op]()
    edge = [match.op] if match.op else [op for op in tape.ops if not known & set(op.outputs)]
    while edge:
        op = edge.pop()
        found.append(op)
        for name in op.inputs:
            if name not in known and name in producer and producer[name] not in found:
                edge.append(producer[name])
    order = {op.name: at for at, op in enumerate(tape.ops)}
    return sorted(found, key=lambda op: order[op.name])
