"""What a float16 audit measured, and which modules that puts at risk, in sentences; it runs nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LARGEST = 65504.0
NEAR = 4.0
"""How close to the largest float16 a value comes for its tensor to be at risk on another text."""
MOST = 0.5
"""The share of a tensor's values that must round to zero for it to be at risk."""


@dataclass(frozen=True)
class Range:
    """One tensor of the step, over all tokens.

    module:    path of the module that computed it, "blocks.1.att"
    what:      operation and number in that module's call, "mul 2"; "state wkv"; "squares", which a norm that is
               written out would compute
    largest, smallest: magnitudes, the latter of what is not zero
    overflows: values that round to infinity in float16
    vanishing: values other than zero that round to zero in float16
    """

    module: str
    what: str
    values: int
    largest: float
    smallest: float
    overflows: int
    vanishing: int


@dataclass(frozen=True)
class Decay:
    """The decays of one layer: how many round to 1.0 in float16, and the slowest one that is below 1."""

    module: str
    values: int
    ones: int
    slowest: float

    @property
    def half_life(self) -> float:
        """Tokens in which the slowest one forgets half."""
        return math.log(0.5) / math.log(self.slowest) if 0 < self.slowest < 1 else math.inf


@dataclass(frozen=True)
class Risk:
    """One reason why a module may go wrong in float16. kind: "overflow", "near", "squares", "decay" or "vanishing"."""

    module: str
    kind: str
    sentence: str


@dataclass(frozen=True)
class Audit:
    """All ranges in the order of computation, one entry a layer in `decays`, and what follows from both."""

    model: str
    version: str
    text: str
    tokens: int
    ranges: tuple[Range, ...]
    decays: tuple[Decay, ...]
    risks: tuple[Risk, ...]


def range_risks(ranges: Sequence[Range]) -> Iterator[Risk]:
    """Tensors that overflow, come close to it, or mostly vanish; squares, where a norm may not be fused."""
    for one in ranges:
        squared = one.what == "squares"
        where = f"{one.what} {'reach' if squared else 'reaches'} {one.largest:.4g}"
        if one.overflows and not squared:
            yield _risk(one, "overflow", f"{where}, infinite in float16 ({one.overflows} of {one.values} values)")
        elif one.largest * NEAR > LARGEST and not squared:
            yield _risk(one, "near", f"{where}, {LARGEST / one.largest:.2g} times of which is all float16 holds")
        elif one.largest * NEAR > LARGEST:
            how = "overflows" if one.overflows else "comes close to overflowing"
            yield _risk(one, "squares", f"{where}: a norm written out in float16 {how}, a fused layer_norm need not")
        if one.vanishing > MOST * one.values:
            yield _risk(one, "vanishing", f"{one.vanishing / one.values:.0%} of {one.what} round to zero in float16")


def decay_risks(decays: Sequence[Decay]) -> Iterator[Risk]:
    """Layers some of whose decays round to 1.0."""
    for one in decays:
        if one.ones:
            share = f"{one.ones:,} of {one.values:,} decays round to 1.0 in float16, and nothing is forgotten there"
            slowest = f"the slowest would halve what it keeps in {one.half_life:,.0f} tokens"
            yield Risk(one.module, "decay", f"{one.module}: {share}; {slowest}")


def _risk(one: Range, kind: str, sentence: str) -> Risk:
    return Risk(one.module, kind, f"{one.module or 'the model'}: {sentence}")
