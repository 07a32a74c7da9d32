"""What an artifact computed on the way for a few tokens, operation by operation; compares nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from runtimes.contract import Array, Artifact, Session
from runtimes.stacking import together
from validation.parity import fitted
from validation.trace import Trace

Constants = Callable[[], Mapping[str, Array]]
"""Reads the constants an operation takes, by name, in float32."""


def no_constants() -> Mapping[str, Array]:
    """Of an operation whose constants cannot be read one by one."""
    return {}


@dataclass(frozen=True)
class Op:
    """One operation of an artifact.

    kind, name: "MatMul", "node_matmul"
    inputs, outputs: names of values that are not constants
    weights:   names of its constants, where the format keeps them
    constants: reads them
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...] = ()
    constants: Constants = field(default=no_constants, compare=False)


class Tap(Protocol):
    """A session that keeps what its last step computed on the way.

    whole: every operation is at hand; else only what enters and leaves the graph
    """

    whole: bool

    @property
    def session(self) -> Session:
        """It has to be closed."""

    def begin(self) -> None:
        """Called before every step."""

    def operations(self) -> Sequence[Op]:
        """Those of the step, in the order in which they run; known after the first one."""

    def values(self) -> Mapping[str, Array]:
        """What the operations of the last step gave, by name."""


@dataclass(frozen=True)
class Tape:
    """Some tokens, each stepped from a state that was written; lists have one entry a token.

    written: the state tensors as the artifact's types hold them, by name
    ports:   names of values that enter the graph
    values:  what enters and what every operation gave, by name
    logits, states: what the session returned
    """

    tokens: tuple[int, ...]
    written: Sequence[Mapping[str, Array]]
    ops: Sequence[Op]
    ports: tuple[str, ...]
    values: Mapping[str, Sequence[Array]]
    logits: Sequence[Array]
    states: Sequence[Mapping[str, Array]]
    whole: bool


def record(tap: Tap, artifact: Artifact, trace: Trace, tokens: int) -> Tape:
    """Step through the last `tokens` of a trace, the reference's state written before each."""
    session, steps = tap.session, range(len(trace.tokens) - tokens, len(trace.tokens))
    own = session.read_state(session.initial_state())
    written, logits, states, values = [], [], [], []
    for index in steps:
        tap.begin()
        state = fitted(trace.states[index], own)
        step = session.step(trace.tokens[index], session.write_state(state))
        written.append(state)
        logits.append(np.array(step.logits))
        states.append({name: np.array(array) for name, array in session.read_state(step.state).items()})
        values.append({**_fed(artifact, state), **tap.values()})
    known = [name for name in values[0] if all(name in each for each in values)]
    return Tape(
        tokens=tuple(trace.tokens[index] for index in steps),
        written=written,
        ops=tuple(tap.operations()),
        ports=tuple(_fed(artifact, written[0])),
        values={name: [each[name] for each in values] for name in known},
        logits=logits,
        states=states,
        whole=tap.whole,
    )


def _fed(artifact: Artifact, state: Mapping[str, Array]) -> dict[str, Array]:
    """The state tensors by the names of their inputs."""
    return {tensor.input: together(tensor.spec(), state) for tensor in artifact.manifest.state}


@dataclass
class Closed:
    """A session of which nothing is known but what it returns."""

    session: Session
    whole: bool = False

    def begin(self) -> None:
        """Nothing is kept."""

    def operations(self) -> Sequence[Op]:
        """None can be seen."""
        return ()

    def values(self) -> Mapping[str, Array]:
        """None can be seen."""
        return {}
