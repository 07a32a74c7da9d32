"""The session every runtime with explicit state shares: state as named arrays, prompts fed by the fewest calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np

from runtimes import emulation, npz
from runtimes.contract import Array, Artifact, Placement, State, Step, TensorSpec
from runtimes.errors import BadArtifact, WrongCall
from runtimes.pairing import split, summed, wholes
from runtimes.stacking import apart, parts, together

Tensors = tuple[Array, ...]
"""State in the order of the manifest's `state` list."""


class Run(Protocol):
    """One graph: token ids of a length it takes and the state in, logits and the new state out."""

    def __call__(self, tokens: Array, state: Tensors) -> tuple[Array, Tensors]: ...


class ExplicitSession:
    """Sessions whose state is a tuple of numpy arrays; a backend supplies one `Run` per graph size.

    graphs: tokens per call -> run; 1 must be among them
    up_to:  those of these sizes whose graph takes fewer tokens too
    fetch:  a state tensor as the backend left it -> an array
    placed: called for placement(), because some runtimes know their placement only after the first run
    """

    def __init__(
        self,
        specs: Sequence[TensorSpec],
        initial: Mapping[str, Array],
        vocab: int,
        graphs: Mapping[int, Run],
        placed: Callable[[], Placement],
        close: Callable[[], None] = lambda: None,
        up_to: Collection[int] = (),
        fetch: Callable[[Any], Array] = np.asarray,
    ) -> None:
        self._specs, self._wholes = tuple(specs), wholes(specs)
        self._parts = tuple(part for spec in self._wholes for part in parts(spec))
        self._initial = dict(initial)
        self._vocab = vocab
        self._graphs = dict(sorted(graphs.items()))
        self._up_to = frozenset(up_to)
        self._placed = placed
        self._close = close
        self._fetch = fetch
        if 1 not in self._graphs:
            raise BadArtifact("the artifact has no single-token graph")

    def initial_state(self) -> State:
        """The tuned initial state where the artifact has one, else each tensor's fill."""
        return self.write_state({part.name: self._initial.get(part.name, part.initial()) for part in self._parts})

    def step(self, token: int, state: State) -> Step:
        """One token; raises WrongCall for an id outside the vocabulary."""
        return self._call(1, [token], state)

    def prefill(self, tokens: Sequence[int], state: State) -> Step:
        """A prompt of any length >= 1 in the fewest calls; logits are those after the last token."""
        if not len(tokens):
            raise WrongCall("prefill needs at least one token")
        seconds, rest = 0.0, list(tokens)
        while rest:
            size, taken = self._next(len(rest))
            step = self._call(size, rest[:taken], state)
            state, seconds, rest = step.state, seconds + step.seconds, rest[taken:]
        return Step(step.logits, step.state, seconds)

    def _next(self, left: int) -> tuple[int, int]:
        """The graph that takes most of the `left` tokens, the smallest of those, and how many it takes."""
        takes = {size: min(size, left) for size in self._graphs if size <= left or size in self._up_to}
        size = max(takes, key=lambda size: takes[size])
        return size, takes[size]

    def read_state(self, state: State) -> dict[str, Array]:
        """Copies of the state tensors by name, those of each layer by themselves, pairs as one."""
        tensors = summed(self._specs, list(map(self._fetch, self._tensors(state))))
        named = (apart(spec, tensor) for spec, tensor in zip(self._wholes, tensors, strict=True))
        return {name: np.array(array) for arrays in named for name, array in arrays.items()}

    def write_state(self, arrays: Mapping[str, Array]) -> State:
        """A state from copies of named tensors; names and shapes must be exactly the artifact's."""
        names = {part.name for part in self._parts}
        if set(arrays) != names:
            odd = sorted(names.symmetric_difference(arrays))
            raise WrongCall(f"state tensors do not match the artifact's: {', '.join(odd[:4])}")
        for part in self._parts:
            if arrays[part.name].shape != part.shape:
                raise WrongCall(f"{part.name} has shape {arrays[part.name].shape}, expected {part.shape}")
        return cast(State, tuple(split(self._specs, [together(spec, arrays) for spec in self._wholes])))

    def placement(self) -> Placement:
        """Where the graphs run; no device ran them where the processor itself is emulated."""
        placed = self._placed()
        return replace(placed, evidence="emulated") if placed.evidence == "run" and emulation.played() else placed

    def close(self) -> None:
        """Release what the backend holds."""
        self._close()

    def _call(self, size: int, tokens: Sequence[int], state: State) -> Step:
        for token in tokens:
            if not isinstance(token, int | np.integer) or not 0 <= token < self._vocab:
                raise WrongCall(f"token {token} is outside the vocabulary of {self._vocab}")
        ids = np.asarray(tokens, np.int64)
        before = time.perf_counter()
        logits, new = self._graphs[size](ids, self._tensors(state))
        seconds = time.perf_counter() - before
        if len(new) != len(self._specs):
            raise BadArtifact(f"a graph gave {len(new)} state tensors back, the manifest has {len(self._specs)}")
        return Step(np.asarray(logits, np.float32).reshape(-1), cast(State, new), seconds)

    @staticmethod
    def _tensors(state: State) -> Tensors:
        return cast(Tensors, state)


def stored_initial_state(artifact: Artifact) -> dict[str, Array]:
    """The tuned initial state tensors of the artifact by name, empty when it has none; raises BadArtifact."""
    name = artifact.manifest.initial_state
    return {} if name is None else npz.read(artifact.folder / name)


def explicit_session(
    artifact: Artifact,
    graphs: Mapping[int, Run],
    placed: Callable[[], Placement],
    close: Callable[[], None] = lambda: None,
    fetch: Callable[[Any], Array] = np.asarray,
) -> ExplicitSession:
    """The session of an artifact whose `graphs` the backend has loaded; `fetch` reads a state tensor off a device."""
    manifest = artifact.manifest
    specs = [tensor.spec() for tensor in manifest.state]
    initial, vocab = stored_initial_state(artifact), manifest.model.vocab
    up_to = [graph.tokens for graph in manifest.graphs if graph.up_to]
    return ExplicitSession(specs, initial, vocab, graphs, placed, close, up_to, fetch)
