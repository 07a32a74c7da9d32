"""Runs a step module of exporter.models as exported graphs run it: tokens and state in, logits and state out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from exporter import versions
from exporter.contract import ModelSpec, Spelling
from exporter.models.parameters import materialise
from tests.oracle import Trace


class StepModule:
    """The torch module of a checkpoint with its spec; weights are read when it is made."""

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        version: str,
        *,
        spelling: Spelling | None = None,
        ln_x_eps: float = 64e-5,
    ) -> None:
        file = versions.load(version)
        self.spec: ModelSpec = file.spec(version, weights, ln_x_eps)
        self.module: torch.nn.Module = file.build(self.spec, weights, spelling or Spelling())
        for _ in materialise(self.module):
            pass

    def initial(self) -> list[torch.Tensor]:
        """Every state tensor at its fill."""
        return [torch.from_numpy(spec.initial()) for spec in self.spec.state]

    def trace(self, tokens: Sequence[int], *, chunks: Sequence[int] | None = None) -> Trace:
        """Feed `tokens`, one a call or in calls of `chunks` tokens; the trace has one row a call."""
        state, logits, states = self.initial(), [], []
        ids = torch.tensor(tokens)
        with torch.inference_mode():
            for part in torch.split(ids, list(chunks) if chunks else 1):
                out, *state = self.module(part, *state)
                logits.append(out.numpy()[0].copy())
                states.append([tensor.numpy().copy() for tensor in state])
        names = [spec.name for spec in self.spec.state]
        columns = zip(names, zip(*states, strict=True), strict=True)
        return Trace(np.stack(logits), {name: np.stack(column) for name, column in columns})


def rows(trace: Trace, chunks: Sequence[int]) -> Trace:
    """The rows of a stepped trace at which calls of `chunks` tokens end."""
    ends = np.cumsum(chunks) - 1
    return Trace(trace.logits[ends], {name: array[ends] for name, array in trace.states.items()})
