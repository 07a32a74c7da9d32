"""The checkpoint's step as a graph of torch operations that can be run one by one on any inputs; matches nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from exporter import graph
from exporter.contract import ModelSpec, Spelling
from exporter.model import Model
from exporter.progress import Progress, silent
from runtimes.contract import Array

Values = list[Any]
"""What a node gives, one entry a token: a tensor, or a tuple of them."""

Env = dict[str, Values]
LAYER = re.compile(r"\bblocks\.(\d+)")


@dataclass(frozen=True)
class Step:
    """One token's step, traced.

    nodes:   the operations in order
    inputs:  names of the placeholders: tokens, then the state in the order of `spec`
    outputs: names of the nodes with the logits and the new state
    weights: the parameters by node name; `stored` has their names in the module
    """

    spec: ModelSpec
    nodes: Sequence[fx.Node]
    inputs: Sequence[str]
    outputs: Sequence[str]
    weights: Mapping[str, Tensor]
    stored: Mapping[str, str]

    def start(self, tokens: Sequence[int], states: Sequence[Mapping[str, Array]]) -> Env:
        """What the first operation finds."""
        env: Env = {name: [value] * len(tokens) for name, value in self.weights.items()}
        env[self.inputs[0]] = [torch.tensor([token]) for token in tokens]
        for name, spec in zip(self.inputs[1:], self.spec.state, strict=True):
            env[name] = [tensor(state[spec.name]).reshape(spec.shape) for state in states]
        return env

    def compute(self, node: fx.Node, env: Env) -> Values:
        """What a node gives for what is in `env`."""
        return call(node, [[env[source.name][at] for source in node.all_input_nodes] for at in range(_length(env))])

    def state_names(self) -> list[str]:
        """Of the outputs after the logits."""
        return [spec.name for spec in self.spec.state]


@torch.no_grad()
def call(node: fx.Node, given: Sequence[Sequence[Any]], arguments: Sequence[Any] | None = None) -> Values:
    """A node's operation on other inputs: for each token one value in place of each of its `all_input_nodes`.

    arguments: in place of the node's own
    """
    target: Any = node.target
    results = []
    for values in given:
        known = dict(zip(node.all_input_nodes, values, strict=True))
        args = fx.node.map_arg(node.args if arguments is None else tuple(arguments), known.__getitem__)
        results.append(target(*args, **fx.node.map_arg(node.kwargs, known.__getitem__)))
    return results


def trace(model: Model, spelling: Spelling, progress: Progress = silent) -> Step:
    """The step as a compiler with this spelling was given it, with the checkpoint's values."""
    module = model.build(spelling)
    graph.load_weights(module, progress)
    program = graph.trace(module, graph.arguments(model.spec, 1))
    traced: Any = program.module()
    nodes = list(traced.graph.nodes)
    stored = {node.name: str(node.target) for node in nodes if node.op == "get_attr"}
    (output,) = (node for node in nodes if node.op == "output")
    return Step(
        spec=model.spec,
        nodes=[node for node in nodes if node.op == "call_function"],
        inputs=[node.name for node in nodes if node.op == "placeholder"],
        outputs=[node.name for node in output.args[0]],
        weights={name: _attribute(traced, path).detach() for name, path in stored.items()},
        stored=stored,
    )


def scope(node: fx.Node) -> str:
    """The module a node belongs to, "blocks.3.att.receptance"; "" for the step itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def layer(node: fx.Node) -> int | None:
    """The block a node belongs to; None before the first and after the last."""
    found = LAYER.search(scope(node))
    return int(found[1]) if found else None


def kind(node: fx.Node) -> str:
    """ "linear", "layer_norm": the operation without namespace and overload."""
    return str(node.target).removeprefix("aten.").split(".")[0]


def tensor(array: Array) -> Tensor:
    """In float32, as the reference computes."""
    return torch.from_numpy(np.array(array, np.float32))


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module


def _length(env: Env) -> int:
    return len(next(iter(env.values())))
