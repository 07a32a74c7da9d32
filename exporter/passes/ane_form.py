"""The step in the Neural Engine's form: a traced step's own operations on tensors laid out otherwise; of no version."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg

from exporter.passes import edge_fold
from exporter.passes.ane_layout import Laid, lay, plain, unlaid
from exporter.passes.ane_ops import ELEMENTWISE, HANDLERS, elementwise

aten = torch.ops.aten

WIDEST = 16384  # channels that one convolution of the Neural Engine gives
ALIGNED = 32  # float16 numbers in 64 bytes


class Form(nn.Module):
    """A traced step that takes table rows in place of token ids, and the state of all layers as one tensor a kind.

    (rows (T, W), *stacks (layers, ...)) -> (*logits (1, part), *stacks). `rows` has, for each token, its row of each
    of `tables`, one after another; the logits come in `part_sizes`, zeros being appended to the last. Positive numbers
    that are added or multiplied with, such as what keeps a divisor from zero, are `least` or more.

    Of a piece of a step: no rows where it looks nothing up, then what the piece before gives, (T, C) each; in place of
    the logits what the next one takes, where it has no head. `states` counts the piece's state tensors.
    """

    def __init__(self, program: ExportedProgram, layers: int, states: int, *, least: float = 0.0) -> None:
        super().__init__()
        self.least = least
        signature = program.graph_signature
        self.layers = layers
        masks = edge_fold.constants(program)
        (output,) = program.graph.find_nodes(op="output")
        given, self.new = output.args[0][:-states], output.args[0][-states:]
        self.head = given[0] if given[0].target == aten.linear.default else None
        self.given = [node for node in given if node is not self.head]
        tokens, *inputs = (node for node in program.graph.nodes if node.name in signature.user_inputs)
        self.hidden, self.state = inputs[:-states], inputs[-states:]
        self.tokens: int = tokens.meta["val"].shape[0]
        self.nodes = [node for node in program.graph.nodes if node.op == "call_function" and node not in masks]
        names = signature.inputs_to_parameters
        stored = {node: program.state_dict[names[node.name]] for node in program.graph.nodes if node.name in names}
        lookups = [node for node in self.nodes if node.target == aten.embedding.default]
        self.tables = [names[str(node.args[0])] for node in lookups]
        self.widths = [stored[_first(node)].shape[1] for node in lookups]
        self.weights = nn.ParameterDict()
        self.head_weights, self.head_biases = nn.ParameterList(), nn.ParameterList()
        for node in self.nodes:
            if node not in lookups:
                self._adopt(node, stored | masks)

    def _adopt(self, node: Node, stored: Mapping[Node, Tensor]) -> None:
        """Keep the constants of an operation: a matrix as that of a convolution, the head's in parts."""
        for given in node.all_input_nodes:
            if given not in stored:
                continue
            value = stored[given].to(torch.float32)
            if node is self.head:
                kept = self.head_weights if given is node.args[1] else self.head_biases
                kept.extend(_frozen(part) for part in _in_parts(value))
            elif node.target == aten.linear.default and given is node.args[1]:
                self.weights[given.name] = _frozen(_kernel(value))
            else:
                self.weights[given.name] = _frozen(value)

    @property
    def part_sizes(self) -> list[int]:
        """Logits in each output that has some."""
        return [weight.shape[0] for weight in self.head_weights]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """rows (T, W), hidden (T, C), stacks (layers, ...) -> logits (1, part) or hidden (T, C), stacks."""
        kinds = len(self.state) // self.layers
        *others, stacks = *tensors[:-kinds], tensors[-kinds:]
        layers = [stack[layer : layer + 1] for layer in range(self.layers) for stack in stacks]
        known = dict(zip(self.state, map(plain, layers), strict=True))
        tables: Iterator[Tensor] = iter(())
        if self.widths:
            rows, *others = others
            tables = iter(torch.split(rows, self.widths, 1) if len(self.widths) > 1 else [rows])
        known |= dict(zip(self.hidden, map(plain, others), strict=True))
        for node in self.nodes:
            if node.target == aten.embedding.default:
                known[node] = plain(next(tables))
            elif node is not self.head:
                known[node] = self._computed(node, known)
        given = [unlaid(known[node]) for node in self.given]
        if self.head is not None:
            given += self._logits(lay(known[_first(self.head)], "channels").tensor)
        new = [unlaid(known[node]) for node in self.new]
        return (*given, *(torch.cat(new[kind::kinds]) for kind in range(kinds)))

    def _computed(self, node: Node, known: Mapping[Node, Laid]) -> Laid:
        target: Any = node.target
        value: Callable[[Node], Any] = partial(self._value, known)
        args, kwargs = cast("tuple[Any, Any]", map_arg((node.args, node.kwargs), value))
        made = None
        if target in ELEMENTWISE:
            made = elementwise(target, *map(self._raised, args), **kwargs)
        elif target in HANDLERS:
            made = HANDLERS[target](*args, **kwargs)
        if made is None:
            args, kwargs = _unlaid((args, kwargs))
            made = plain(target(*args, **kwargs))
        return made

    def _value(self, known: Mapping[Node, Laid], node: Node) -> Laid:
        return known[node] if node in known else plain(self.weights[node.name])

    def _raised(self, number: Any) -> Any:
        return max(number, self.least) if isinstance(number, float) and number > 0 else number

    def _logits(self, x: Tensor) -> Iterator[Tensor]:
        """x (1, C, 1, 1) -> (1, part) for each part."""
        biases = self.head_biases or [None] * len(self.head_weights)
        for weight, bias in zip(self.head_weights, biases, strict=True):
            yield F.conv2d(x, weight, bias).reshape(1, -1)


def _first(node: Node) -> Node:
    (first, *_) = node.all_input_nodes
    return first


def _unlaid(given: Any) -> Any:
    if isinstance(given, Laid):
        return unlaid(given)
    if isinstance(given, dict):
        return {name: _unlaid(value) for name, value in given.items()}
    return type(given)(map(_unlaid, given)) if isinstance(given, list | tuple) else given


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _kernel(matrix: Tensor) -> Tensor:
    """(out, in) -> (out, in, 1, 1)."""
    return matrix[:, :, None, None]


def head_parts(outputs: int) -> tuple[int, int]:
    """How many parts a head of so many outputs is cut into, and the outputs of each."""
    size = math.ceil(outputs / math.ceil(outputs / WIDEST) / ALIGNED) * ALIGNED
    return math.ceil(outputs / size), size


def _in_parts(tensor: Tensor) -> Iterator[Tensor]:
    """The head's matrix, or its bias, in parts of equal size, of which the last ends in zeros."""
    outputs = tensor.shape[0]
    _, size = head_parts(outputs)
    for start in range(0, outputs, size):
        part = tensor[start : start + size]
        if short := size - part.shape[0]:
            part = torch.cat([part, part.new_zeros(short, *part.shape[1:])])
        yield _kernel(part) if part.dim() == 2 else part
