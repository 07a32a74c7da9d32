"""From matches to places: which operation, how far off, what was right before it; decides nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import fx

from runtimes.contract import Array
from validation.localise.bank import FLOOR, distance, largest, stacked
from validation.localise.case import Blame, Case, between
from validation.localise.findings import Input, Layer, Place
from validation.localise.reference import Env, Step, kind, layer, scope
from validation.localise.tape import Tape
from validation.localise.walk import Match, Walked

INPUTS = 6
"""Inputs that a place names."""


@dataclass(frozen=True)
class Survey:
    """A walk beside the reference left to itself: `plain` has what every operation gives there."""

    step: Step
    tape: Tape
    walked: Walked
    plain: Env

    def place(self, match: Match, blame: Blame | None = None) -> Place:
        """One match, told; `blame` knows better which operation it is."""
        giver = blame.op if blame else None
        op, node = giver or match.op, match.node if blame is None or match.op else blame.node
        wanted, found = stacked(match.wanted), stacked(match.found)
        return Place(
            layer=layer_name(node),
            module=scope(node),
            reference=f"{kind(node)} ({node.name})",
            op=f"{op.kind} {op.name}" if op else "",
            between=() if giver else tuple(self._between(match)),
            tensor=giver.outputs[0] if giver else self._tensor(match),
            max_abs=_number(np.abs(_minus(found, wanted)).max()),
            relative=_number(match.own),
            sqnr_db=sqnr(wanted, found),
            level=match.level,
            inherited=self._inherited(match.node),
            before=tuple(self._inputs(match.node)),
            cause=blame.cause if blame else None,
        )

    def layers(self) -> list[Layer]:
        """Every block where it ends, and what comes after the last."""
        groups: dict[str, list[Match]] = {}
        for match in self.walked.matches:
            groups.setdefault(layer_name(match.node) or "head", []).append(match)
        before = [match for match in groups.pop("head", []) if scope(match.node) == ""]
        rows = {"embedding": before, **groups}
        after = [match for match in self.walked.matches if layer(match.node) is None and scope(match.node)]
        return [self._layer(name, matches) for name, matches in {**rows, "head": after}.items() if matches]

    def _layer(self, name: str, matches: Sequence[Match]) -> Layer:
        inside = [match for match in matches if match.name is not None] or list(matches)
        end = inside[-1]
        wanted, found = stacked(self.plain[end.node.name]), stacked(end.found)
        worst = max(match.own / match.level for match in matches)
        return Layer(
            name=name,
            tensor=self._tensor(end),
            max_abs=_number(np.abs(_minus(found, wanted)).max()),
            relative=self._inherited(end.node),
            sqnr_db=sqnr(wanted, found),
            worst=_number(worst),
        )

    def _tensor(self, match: Match) -> str:
        if match.name is not None:
            return match.name
        names = ["logits", *(f"{name} after the step" for name in self.step.state_names())]
        return names[list(self.step.outputs).index(match.node.name)]

    def _inherited(self, node: fx.Node) -> float | None:
        wanted = stacked(self.plain[node.name])
        size = max(largest(wanted), FLOOR)
        return _number(distance(wanted, stacked(self.walked.env[node.name]), size))

    def _between(self, match: Match) -> Iterator[str]:
        """Operations of the artifact, or where it shows none, modules of the step."""
        if self.tape.whole:
            for op in between(self.tape, self.walked, match) if match.op else ():
                if op is not match.op:
                    yield f"{op.kind} {op.name}"
        else:
            suspects = Case(self.step, self.tape, self.walked, match, "").suspects
            yield from dict.fromkeys(scope(node) for node in reversed(suspects) if scope(node))

    def _inputs(self, node: fx.Node) -> Iterable[Input]:
        states = dict(zip(self.step.inputs[1:], self.step.state_names(), strict=True))
        for source in node.all_input_nodes[:INPUTS]:
            if source.op == "get_attr":
                yield Input(self.step.stored[source.name], None)
            elif source.op == "placeholder":
                yield Input(states.get(source.name, source.name), 0.0)
            else:
                floating = self.plain[source.name][0]
                if hasattr(floating, "is_floating_point") and floating.is_floating_point():
                    yield Input(f"{kind(source)} ({source.name})", self._inherited(source))


def layer_name(node: fx.Node) -> str:
    """ "blocks.3", or "" outside of the blocks."""
    number = layer(node)
    return "" if number is None else f"blocks.{number}"


def sqnr(wanted: Array, found: Array) -> float | None:
    """10 log10 of signal over error, dB; None where there is no error or no finite one."""
    error = float(np.square(_minus(found, wanted).astype(np.float64)).sum())
    signal = float(np.square(wanted.astype(np.float64)).sum())
    if not math.isfinite(error) or error == 0 or signal == 0:
        return None
    return 10 * math.log10(signal / error)


def _minus(one: Array, other: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return one - other


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
