"""Traces the step module with torch.export, with or without the weights in memory; writes no file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram

from exporter.contract import ModelSpec
from exporter.models.parameters import materialise, value
from exporter.progress import Progress

STEP = "decode"
"""The name of the function or method that takes one token."""

Shapes = tuple[dict[int, Dim], tuple[None, ...]] | None


def arguments(spec: ModelSpec, tokens: int) -> tuple[Tensor, ...]:
    """Example inputs: `tokens` zeros and the initial state."""
    state = (torch.full(tensor.shape, tensor.fill) for tensor in spec.state)
    return (torch.zeros(tokens, dtype=torch.int64), *state)


def calls(prefill: Sequence[int]) -> dict[str, int]:
    """Tokens of a call by the name of its function or method: "decode", "prefill64"."""
    return {STEP: 1, **{f"prefill{size}": size for size in prefill}}


def any_length(inputs: tuple[Tensor, ...]) -> Shapes:
    """The dynamic shapes of a step whose tokens may be of any number."""
    return ({0: Dim("tokens", min=3)}, (None,) * (len(inputs) - 1))  # torch takes 1 and 2 for special


def trace(model: nn.Module, inputs: tuple[Tensor, ...], shapes: Shapes = None) -> ExportedProgram:
    """The program of a module whose parameters have values; `shapes` as torch.export's dynamic_shapes."""
    return torch.export.export(model.eval(), inputs, dynamic_shapes=shapes, strict=False)


def trace_without_weights(model: nn.Module, inputs: tuple[Tensor, ...], shapes: Shapes = None) -> ExportedProgram:
    """The program of a module whose parameters are on the meta device; they become fake CPU tensors in it.

    Peak memory is that of the graph alone, whatever the size of the model. The module itself is left as it was.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes = {name: torch.empty(made.shape, dtype=made.dtype) for name, made in model.named_parameters()}
        with holding(model, fakes):
            return trace(model, inputs, shapes)


@contextmanager
def holding(model: nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    """Within the block the module's parameters are the given tensors."""
    own = dict(model.named_parameters())
    _register(model, {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()})
    try:
        yield
    finally:
        _register(model, own)


@contextmanager
def loaded(model: nn.Module, progress: Progress) -> Iterator[None]:
    """Within the block the module's parameters have the values that the checkpoint gives them."""
    names = dict(model.named_parameters())
    tensors = {}
    with progress("reading the weights", len(names)) as advance:
        for name, made in names.items():
            tensors[name] = value(made)
            advance(1)
    with holding(model, tensors):
        yield


def _register(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    for name, made in parameters.items():
        path, _, leaf = name.rpartition(".")
        model.get_submodule(path).register_parameter(leaf, made)


def load_weights(model: nn.Module, progress: Progress) -> None:
    """Read every parameter's value from the checkpoint, for toolchains that need them in memory."""
    names = [name for name, _ in model.named_parameters()]
    with progress("reading the weights", len(names)) as advance:
        for _ in materialise(model):
            advance(1)
