"""Walks the reference's operations beside an artifact's values: which are the same, and what each adds in error.

Every operation of the reference is computed from what the *artifact* gave it. So an error shows where it is made, not
where it is inherited, and a value is recognised however wrong those before it were. Names are only a hint: fused,
renamed and reordered operations are found by their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from validation.localise.bank import FLOOR, Bank, distance, largest, stacked, turned
from validation.localise.reference import Env, Step, Values, kind, tensor
from validation.localise.tape import Op, Tape

SUFFIX = re.compile(r"(_cast_\w+|@\d+|_\d+_to_\w+)$")
"""What Core ML adds to the names it takes from torch."""
EXACT = 1e-7
"""Below this, values are the same."""
AHEAD = 8
"""Operations after a doubtful one that must tell whether it was found."""
REACH = 120
"""Operations among which those are looked for."""
FEW = 6
"""Values that are tried as a doubtful operation's."""

Level = Callable[[fx.Node], float]
"""What error an operation may add, of the largest number it gives."""


@dataclass(frozen=True)
class Match:
    """One operation of the reference and the value of the artifact that is its result.

    name:     of the value; None for what the session returned
    op:       what gave it; None for what enters the graph
    wanted:   the result for the artifact's own inputs, one entry a token
    found:    what the artifact has, in the same shapes
    own:      how far apart they are, of the largest number wanted
    level:    how far they may be
    """

    node: fx.Node
    name: str | None
    op: Op | None
    wanted: Sequence[Tensor]
    found: Sequence[Tensor]
    own: float
    level: float

    @property
    def wrong(self) -> bool:
        """Whether the operation adds more than it may."""
        return not self.own <= self.level


@dataclass(frozen=True)
class Walked:
    """env: what every operation gave, the artifact's value where there is one; matches in the reference's order.

    names: operation of the reference -> value of the artifact
    """

    env: Env
    matches: Sequence[Match]
    names: Mapping[str, str]


class Walk:
    """One comparison of a tape with a step."""

    def __init__(self, step: Step, tape: Tape, level: Level, aliases: Mapping[str, str]) -> None:
        """`aliases`: values of the artifact that are called as its outputs are -> the node that output comes from."""
        self._step, self._tape, self._level, self._aliases = step, tape, level, aliases
        self._bank = Bank(tape)
        self._names: dict[str, str] = {}  # node -> value

    def run(self) -> Walked:
        """Every operation in turn, then what the session returned."""
        env = self._step.start(self._tape.tokens, self._tape.written)
        self._names = dict(zip(self._step.inputs[1:], self._tape.ports, strict=False))
        matches = []
        for index, node in enumerate(self._step.nodes):
            env[node.name] = wanted = self._step.compute(node, env)
            if not comparable(wanted):
                continue
            match = self._recognised(node, env, ()) or self._doubtful(index, node, env)
            if match:
                matches.append(match)
                env[node.name] = list(match.found)
                self._names[node.name] = match.name or ""
        if self._tape.whole:
            matches += [match for name in self._step.outputs if (match := self._returned(name, env))]
        return Walked(env, matches, dict(self._names))

    def _recognised(self, node: fx.Node, env: Env, without: Collection[str]) -> Match | None:
        """The value that is what the operation should give; in a closed session only what it returned."""
        if not self._tape.whole:
            return self._returned(node.name, env) if node.name in self._step.outputs else None
        wanted, level = env[node.name], self._level(node)
        near = self._bank.near(stacked(wanted), scale(node, env), level, without)
        if near:
            best = self._match(node, env, near[0], wanted)
            named = [name for name in near if self._called(name) == node.name]
            match = self._match(node, env, named[0], wanted) if named else best
            return match if match.own <= 2 * best.own + EXACT else best
        if other := turned(wanted):
            for name in self._bank.near(stacked(other), scale(node, env), level, without)[:1]:
                return self._match(node, env, name, wanted, turn=True)
        return None

    def _doubtful(self, index: int, node: fx.Node, env: Env) -> Match | None:
        """The value that must be the operation's although it is not what it should be, if there is one.

        It is the one from which the operations that follow compute what the artifact has: more of them than if this
        operation was only missing, as one that was fused is.
        """
        if not self._tape.whole:
            return None
        best, most = None, self._ahead(index, node, env)
        for name in self._candidates(node, env):
            match = self._match(node, env, name, env[node.name])
            found = self._ahead(index, node, {**env, node.name: list(match.found)}, name)
            if found > most:
                best, most = match, found
        return best

    def _ahead(self, index: int, node: fx.Node, env: Env, taken: str = "") -> int:
        """How many of the next operations that follow from this one are found in the artifact."""
        known, follows, env = {*self._names.values(), taken}, {node.name}, dict(env)
        found = seen = 0
        if node.name in self._step.outputs and (match := self._returned(node.name, env)):
            found += not match.wrong
        for later in self._step.nodes[index + 1 : index + 1 + REACH]:
            wanted = env[later.name] = self._step.compute(later, env)
            if not any(source.name in follows for source in later.all_input_nodes):
                if comparable(wanted) and (match := self._recognised(later, env, ())):
                    env[later.name] = list(match.found)
                continue
            follows.add(later.name)
            if comparable(wanted):
                match = self._recognised(later, env, known)
                found += match is not None
                seen += 1
                if match:
                    env[later.name] = list(match.found)
            if seen == AHEAD:
                break
        return found

    def _candidates(self, node: fx.Node, env: Env) -> list[str]:
        """Values of the right size that nothing else was recognised as: by name, by weight, by what they come from."""
        taken, wanted = set(self._names.values()), stacked(env[node.name])
        given = {self._names[name] for name in self._above(node)}
        stored = {self._step.stored[source.name] for source in node.all_input_nodes if source.name in self._step.stored}
        ranked = []
        for name in self._bank.of_size(wanted.size):
            op = self._bank.producer.get(name)
            if name in taken or op is None:
                continue
            named = self._called(name) == node.name
            weighed = any(weight.startswith(each) for weight in op.weights for each in stored)
            shared = len(self._bank.sources(name, taken) & given)
            if named or weighed or shared:
                apart = distance(wanted, self._bank.numbers[name], scale(node, env))
                ranked.append((-named - weighed, -shared, apart, name))
        return [name for *_, name in sorted(ranked)[:FEW]]

    def _above(self, node: fx.Node, depth: int = 4) -> set[str]:
        """The nearest operations before this one that were recognised, and inputs."""
        found: set[str] = set()
        for source in node.all_input_nodes:
            if self._names.get(source.name):
                found.add(source.name)
            elif depth and source.op == "call_function":
                found |= self._above(source, depth - 1)
        return found

    def _called(self, name: str) -> str:
        while (short := SUFFIX.sub("", name)) != name:
            name = short
        return self._aliases.get(name, name)

    def _returned(self, node_name: str, env: Env) -> Match | None:
        """What the session returned where this operation's result was to be."""
        at = list(self._step.outputs).index(node_name)
        name = "" if at == 0 else self._step.state_names()[at - 1]
        arrays = self._tape.logits if at == 0 else [state[name] for state in self._tape.states]
        node = next(node for node in self._step.nodes if node.name == node_name)
        found = [tensor(array).reshape(value.shape) for array, value in zip(arrays, env[node_name], strict=True)]
        return self._made(node, env, None, env[node_name], found)

    def _match(self, node: fx.Node, env: Env, name: str, wanted: Values, *, turn: bool = False) -> Match:
        found = []
        for array, value in zip(self._tape.values[name], wanted, strict=True):
            shape = value.mT.shape if turn else value.shape
            made = tensor(array).reshape(shape)
            found.append(made.mT if turn else made)
        return self._made(node, env, name, wanted, found)

    def _made(self, node: fx.Node, env: Env, name: str | None, wanted: Values, found: Sequence[Tensor]) -> Match:
        own = distance(stacked(wanted), stacked(found), scale(node, env))
        return Match(node, name, self._bank.producer.get(name or ""), wanted, found, own, self._level(node))


def comparable(values: Values) -> bool:
    """Whether these are tensors of floating point with more than one number."""
    first = values[0]
    return isinstance(first, torch.Tensor) and first.dtype.is_floating_point and first.numel() > 1


def scale(node: fx.Node, env: Env) -> float:
    """The largest number that an operation gives; of a sum or a difference also the largest that it takes."""
    size = largest(stacked(env[node.name]))
    if kind(node) in ("add", "sub"):
        size = max([size, *(largest(stacked(env[source.name])) for source in node.all_input_nodes)])
    return max(size, FLOOR)
