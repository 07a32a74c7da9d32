"""The Core ML models of an artifact in turn, called as one step, whoever computes them; it loads none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runtimes import lookup
from runtimes.contract import Array, Artifact
from runtimes.manifest import Graph
from runtimes.mil.package import Package
from runtimes.mil.scoped import outside
from runtimes.session import Run, Tensors

PREFERRED = {"MLCPUComputeDevice": "cpu", "MLGPUComputeDevice": "gpu", "MLNeuralEngineComputeDevice": "ane"}

Load = Callable[[Path, str | None], Any]
"""A package and the function of it -> what has `predict`, and `make_state` where it keeps a state."""


class Chain:
    """A graph's models in turn, nearly always one: what a model gives those after it take, by name."""

    def __init__(self, artifact: Artifact, graph: Graph, load: Load) -> None:
        paths = [artifact.folder / file for file in (graph.file, *graph.then)]
        self.models = [load(path, graph.function) for path in paths]
        self.functions = [Package(path).function(graph.function) for path in paths]
        self.names = [outside(artifact.manifest, graph, number) for number, _ in enumerate(paths, 1)]
        self.shape = self.functions[0].inputs[graph.input].shape

    def predict(self, feed: dict[str, Array], held: dict[str, Array]) -> dict[str, Array]:
        """All that the models gave, and the state that they hold after the call.

        That state is written before and read after each call, so that the session stays pure. Both copies count as time
        of the step, which an app that keeps its MLState does not spend.
        """
        values = dict(feed)
        for model, function, outer in zip(self.models, self.functions, self.names, strict=True):
            taken, kept = {name: values[outer(name)] for name in function.inputs}, {}
            if function.states:
                state = model.make_state()
                for name in function.states:
                    state.write_state(name, held[outer(name)].astype(np.float32))
                given = model.predict(taken, state=state)
                kept = {name: np.asarray(state.read_state(name)) for name in function.states}
            else:
                given = model.predict(taken)
            values |= {outer(name): array for name, array in {**given, **kept}.items()}
        return values


def runner(chain: Chain, graph: Graph, artifact: Artifact) -> Run:
    """The graph that a chain computes."""
    manifest, table = artifact.manifest, lookup.open_table(artifact, graph)

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        feed = {graph.input: lookup.fed(graph, table, tokens).reshape(chain.shape)}
        feed |= lookup.masks(graph, tokens, manifest.state[0].dtype)
        held: dict[str, Array] = {}
        for tensor, array in zip(manifest.state, state, strict=True):
            (held if tensor.input == tensor.output else feed)[tensor.input] = array
        out = chain.predict(feed, held)
        logits = lookup.joined(graph, out, manifest.model.vocab)
        return logits, tuple(np.asarray(out[tensor.output], tensor.dtype) for tensor in manifest.state)

    return run


def preferred(plan: Any, function: str) -> Counter[str]:
    """The operations of a function per device that an MLComputePlan prefers for them."""
    nodes: Counter[str] = Counter()
    for operation in plan.model_structure.program.functions[function].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is not None:
            nodes[PREFERRED[type(usage.preferred_compute_device).__name__]] += 1
    return nodes


def most(nodes: Counter[str]) -> str:
    """Where a session ran that spread its operations so: where most of them did."""
    return nodes.most_common(1)[0][0] if nodes else "unknown"
