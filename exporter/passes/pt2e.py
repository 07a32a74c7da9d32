"""Quantises a traced step with a delegate's own PT2E quantiser, calibrated on text; it knows no delegate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from exporter.progress import Progress


def quantised(
    module: GraphModule, inputs: tuple[torch.Tensor, ...], quantizer: Any, tokens: Sequence[int], progress: Progress
) -> GraphModule:
    """The step with quantise and dequantise operators around what `quantizer` annotates.

    module:    (ids (T,), *state) -> (logits, *state), as `ExportedProgram.module(check_guards=False)` gives it; it is
               changed
    inputs:    example inputs, whose state is the one a model starts with
    quantizer: a torchao.quantization.pt2e.quantizer.Quantizer
    tokens:    what is read T ids at a time, the state carried from call to call, so that observers see the ranges that
               a state grows into; what is left over is not read
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    observed = prepare_pt2e(module, quantizer)
    _read(observed, inputs, tokens, progress)
    made: GraphModule = convert_pt2e(observed)
    return made


@torch.no_grad()
def _read(module: GraphModule, inputs: tuple[torch.Tensor, ...], tokens: Sequence[int], progress: Progress) -> None:
    ids, *state = inputs
    size = len(ids)
    whole = len(tokens) // size * size
    with progress("calibrating", whole) as advance:
        for start in range(0, whole, size):
            _, *state = module(torch.tensor(tokens[start : start + size], dtype=ids.dtype), *state)
            advance(size)
