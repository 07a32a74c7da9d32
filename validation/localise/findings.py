"""What localising found, as plain data for a table, a sentence or JSON; it looks for nothing itself."""

from __future__ import annotations

from dataclasses import dataclass

from validation.localise.catalogue import Cause

SCHEMA = 1


@dataclass(frozen=True)
class Input:
    """What an operation takes: its name in the reference, and its error against the checkpoint's step, relative."""

    name: str
    error: float | None


@dataclass(frozen=True)
class Place:
    """One operation of the artifact and what is wrong there.

    layer:     "blocks.3", "" before and after the blocks
    module:    the submodule of the step, "blocks.3.att.receptance"
    reference: the step's operation, "linear (linear_12)"
    op:        the artifact's, "MatMulNBits node_linear_12"; "" where it cannot be seen
    between:   operations of the artifact since the last values that are known to be right; one of them is at fault
    tensor:    the artifact's value
    max_abs, relative, sqnr_db: what the operation adds by itself: its result against what its own inputs should give;
               relative to the largest number; sqnr_db is None where there is no error, or no finite one
    level:     what `relative` may be
    inherited: relative error against the checkpoint's step, whatever its source; None for infinity and NaN
    before:    what it takes
    """

    layer: str
    module: str
    reference: str
    op: str
    between: tuple[str, ...]
    tensor: str
    max_abs: float | None
    relative: float | None
    sqnr_db: float | None
    level: float
    inherited: float | None
    before: tuple[Input, ...]
    cause: Cause | None = None


@dataclass(frozen=True)
class Layer:
    """Where a layer ends, against the checkpoint's step: relative error and signal-to-noise ratio of its last value.

    worst: what the worst of its operations adds by itself, of what it may add; over 1 something is wrong there
    None stands for infinity and NaN
    """

    name: str
    tensor: str
    max_abs: float | None
    relative: float | None
    sqnr_db: float | None
    worst: float | None


@dataclass(frozen=True)
class Found:
    """The outcome of one artifact in one place.

    lost:    a bound is broken, or an operation is wrong by itself
    reasons: each broken bound of the results as a sentence
    first:   where parity is lost first; None where nothing is wrong by itself
    others:  operations that are wrong by themselves too
    most:    the operations that add most, in order, whether or not it is too much
    cause:   what it is if no single operation is wrong and the results are
    seen, operations: of the step's operations, those whose value the artifact has, and all
    whole:   whether the values between the operations were looked at, or only what goes in and out
    """

    schema: int
    artifact: str
    target: str
    precision: str
    place: str
    tokens: int
    whole: bool
    seen: int
    operations: int
    lost: bool
    reasons: tuple[str, ...]
    sentence: str
    layers: tuple[Layer, ...]
    first: Place | None
    others: tuple[Place, ...]
    most: tuple[Place, ...]
    cause: Cause | None = None
