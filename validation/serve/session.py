"""A session whose graphs and states are in a browser: what the harness does to any artifact, it does to a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, cast

import numpy as np

from runtimes.contract import Array, Artifact, State, Step
from runtimes.errors import RwkvExportError
from runtimes.manifest import Graph
from runtimes.session import ExplicitSession, Tensors, stored_initial_state
from validation.serve import wire
from validation.serve.line import Line
from validation.serve.places import Place


class Held:
    """The number of a state in the page, which forgets it some time after this is gone."""

    def __init__(self, number: int, dropped: list[int]) -> None:
        self.number = number
        self._dropped = dropped

    def __del__(self) -> None:
        self._dropped.append(self.number)


class PageSession(ExplicitSession):
    """An artifact loaded by the page at the other end of `line`; seconds are those that the page measured.

    load_s: seconds that loading took, download apart
    """

    def __init__(self, artifact: Artifact, place: Place, line: Line, urls: Mapping[str, str]) -> None:
        manifest = artifact.manifest
        specs = [tensor.spec() for tensor in manifest.state]
        sizes = [graph.tokens for graph in manifest.graphs]
        up_to = [graph.tokens for graph in manifest.graphs if graph.up_to]
        super().__init__(
            specs,
            stored_initial_state(artifact),
            manifest.model.vocab,
            dict.fromkeys(sizes, _elsewhere),
            lambda: place.observed(self._opened),
            up_to=up_to,
        )
        self._line = line
        self._numbers: Iterator[int] = count()
        self._dropped: list[int] = []
        answer = self._ask(_command(artifact, place, urls))
        if answer.opened is None or len(answer.seconds) != 1:
            raise RwkvExportError("the page did not say what it opened")
        self._opened = answer.opened
        self.load_s = answer.seconds[0]

    def prefill(self, tokens: Sequence[int], state: State) -> Step:
        """As in ExplicitSession, all calls in one command, so that no time of the network lies between them."""
        calls: list[tuple[int, Sequence[int]]] = []
        rest = list(tokens)
        while rest:
            size, taken = self._next(len(rest))
            calls.append((size, rest[:taken]))
            rest = rest[taken:]
        return self._run(calls, state)

    def decode(self, token: int, state: State, steps: int) -> tuple[tuple[float, ...], Step]:
        """Greedy steps from `token` on, one after another in the page: the seconds of each, and the last."""
        new = self._held()
        command = {"op": "decode", "from": _number(state), "to": new.number, "token": token, "count": steps}
        answer = self._ask(command)
        if len(answer.seconds) != steps:
            raise RwkvExportError(f"the page timed {len(answer.seconds)} steps, expected {steps}")
        return answer.seconds, self._step(answer, new)

    def read_state(self, state: State) -> dict[str, Array]:
        """Copies of the state tensors by name, those of each layer by themselves."""
        blob = self._ask({"op": "read", "from": _number(state)}).blob
        return super().read_state(cast(State, wire.tensors(blob, self._specs)))

    def write_state(self, arrays: Mapping[str, Array]) -> State:
        """A state in the page from copies of named tensors; names and shapes must be exactly the artifact's."""
        written = cast(Tensors, super().write_state(arrays))
        new = self._held()
        self._ask({"op": "write", "to": new.number}, b"".join(np.ascontiguousarray(each).tobytes() for each in written))
        return cast(State, new)

    def _call(self, size: int, tokens: Sequence[int], state: State) -> Step:
        return self._run([(size, tokens)], state)

    def _run(self, calls: Sequence[tuple[int, Sequence[int]]], state: State) -> Step:
        new = self._held()
        answer = self._ask({"op": "run", "from": _number(state), "to": new.number, "calls": calls})
        if len(answer.seconds) != len(calls):
            raise RwkvExportError(f"the page timed {len(answer.seconds)} calls, expected {len(calls)}")
        return self._step(answer, new)

    def _step(self, answer: wire.Answer, new: Held) -> Step:
        return Step(wire.logits(answer, self._vocab), cast(State, new), sum(answer.seconds))

    def _held(self) -> Held:
        return Held(next(self._numbers), self._dropped)

    def _ask(self, header: Mapping[str, Any], blob: bytes = b"") -> wire.Answer:
        dropped = [self._dropped.pop() for _ in range(len(self._dropped))]
        return self._line.ask({**header, "drop": dropped}, blob)


def _number(state: State) -> int:
    return cast(Held, state).number


def _elsewhere(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
    raise AssertionError("the graphs are in the page")


def _command(artifact: Artifact, place: Place, urls: Mapping[str, str]) -> dict[str, Any]:
    """What the page needs to know to load an artifact; all of it from the manifest."""
    manifest = artifact.manifest
    graphs = [_graph(graph, urls) for graph in sorted(manifest.graphs, key=lambda graph: graph.tokens)]
    files = {graph.file for graph in manifest.graphs}
    data = [file for file in manifest.files if file.path in urls and file.path not in files]
    return {
        "op": "open",
        "provider": place.provider,
        "device": place.device,
        "threads": place.threads,
        "graphs": graphs,
        "data": [{"path": file.path, "url": urls[file.path], "bytes": file.bytes} for file in data],
        "state": [
            {"input": tensor.input, "output": tensor.output, "dtype": tensor.dtype, "shape": tensor.shape}
            for tensor in manifest.state
        ],
    }


def _graph(graph: Graph, urls: Mapping[str, str]) -> dict[str, Any]:
    names = {"input": graph.input, "dtype": graph.input_dtype, "output": graph.output}
    return {"tokens": graph.tokens, "url": urls[graph.file], **names}
