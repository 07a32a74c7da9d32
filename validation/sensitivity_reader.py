"""A model in float32 that reads one text again and again, some of its matrices quantised; it chooses none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import cast

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor, nn

from exporter import calibration
from exporter.contract import Spelling
from exporter.graph import holding, load_weights
from exporter.model import Model
from exporter.models.layers import Linear, StepModel
from exporter.passes import torch_quantise, torch_tables
from exporter.progress import Progress
from exporter.simulation import Matrix, Simulation, Spread, Table
from exporter.vocabulary import encoded
from runtimes.contract import Array
from validation.sensitivity_results import Effect

CALL = 64  # tokens read at once
CALIBRATION = 256  # tokens

Stored = Matrix | Table


class Reader:
    """Holds the model and its logits of the text, both float32.

    ids:        the text; each but the first is predicted from those before
    perplexity: of the text in float32
    """

    def __init__(self, model: Model, simulation: Simulation, ids: Sequence[int], progress: Progress) -> None:
        self.model, self.simulation, self.ids = model, simulation, ids
        self.step = cast(StepModel, model.build(Spelling()).eval())
        looked_up = torch_tables.looked_up(self.step, model.spec)
        self.tables = [name for name, made in self.step.named_parameters() if made in looked_up]
        if simulation.balanced:
            torch_quantise.balance(self.step)
        load_weights(self.step, progress)
        parts = self.step.named_modules()
        self.linears = {f"{path}.weight": part for path, part in parts if isinstance(part, Linear)}
        self._spreads = self._seen(progress) if simulation.spreads else {}
        with progress("reading the text in float32"):
            self._reference = list(self._logits(ids[:-1]))
            losses = np.concatenate([loss for _, loss, _ in self._compared(iter(self._reference))])
        self.perplexity = _perplexity(losses)

    def parts(self) -> dict[str, list[str]]:
        """Parameters that products and lookups take, by what they are in: "blocks.0" and so on, "" for the others."""
        parts: dict[str, list[str]] = {f"blocks.{i}": [] for i in range(self.model.spec.layers)}
        parts[""] = []
        for name in (*self.linears, *self.tables):
            parts[".".join(name.split(".")[:2]) if name.startswith("blocks.") else ""].append(name)
        return parts

    def stored(self, name: str) -> Stored | None:
        """A parameter as the target stores it, or None where it stays as it is."""
        if name in self.tables:
            return self.simulation.table(name, self.step.get_parameter(name).detach())
        linear = self.linears[name]
        return self.simulation.matrix(name, linear.weight.detach(), linear.bias, self._spreads.get(name))

    def effect(self, name: str, stored: Mapping[str, Stored]) -> Effect:
        """What it costs to compute with these in place of float32."""
        with self._quantised(stored):
            kl, losses, same = (
                np.concatenate(parts) for parts in zip(*self._compared(self._logits(self.ids[:-1])), strict=True)
            )
        return Effect(
            name=name,
            kind=next(iter(stored.values())).kind if len(stored) == 1 else "",
            parameters=sum(self.step.get_parameter(each).numel() for each in stored),
            nbytes=sum(each.nbytes for each in stored.values()),
            kl_mean=float(kl.mean()),
            kl_p99=float(np.quantile(kl, 0.99)),
            perplexity=_perplexity(losses),
            top1=float(same.mean()),
        )

    @contextmanager
    def _quantised(self, stored: Mapping[str, Stored]) -> Iterator[None]:
        rows = {name: each.rows for name, each in stored.items() if isinstance(each, Table)}
        with ExitStack() as stack:
            for name, each in stored.items():
                if isinstance(each, Matrix):
                    stack.enter_context(self.linears[name].register_forward_hook(partial(_instead, each)))
            stack.enter_context(holding(self.step, rows))
            yield

    @torch.no_grad()
    def _logits(self, ids: Sequence[int]) -> Iterator[Tensor]:
        """Of every token, CALL at a time: a call of the step itself gives the last token's only."""
        state, seen = self._start(), []
        with self.step.blocks[-1].register_forward_hook(lambda _, __, made: seen.append(made[0])):
            for start in range(0, len(ids), CALL):
                _, *state = self.step(torch.tensor(ids[start : start + CALL]), *state)
                yield self.step.head(self.step.ln_out(seen.pop()))

    def _start(self) -> list[Tensor]:
        fresh = {spec.name: spec.initial() for spec in self.model.spec.state} | dict(self.model.initial)
        return [torch.from_numpy(array) for array in fresh.values()]

    def _compared(self, logits: Iterator[Tensor]) -> Iterator[tuple[Array, Array, Array]]:
        """KL of each prediction to float32's, the token's loss, whether the likeliest is the same; float64."""
        for number, (reference, made) in enumerate(zip(self._reference, logits, strict=True)):
            log_p, log_q = (log_softmax(each.numpy().astype(np.float64), 1) for each in (reference, made))
            tokens = self.ids[number * CALL + 1 :][: len(log_q)]
            kl = np.maximum(0.0, np.sum(np.exp(log_p) * (log_p - log_q), 1))  # rounding may leave -1e-17
            yield kl, -log_q[np.arange(len(tokens)), tokens], log_p.argmax(1) == log_q.argmax(1)

    def _seen(self, progress: Progress) -> dict[str, Spread]:
        """What goes into linears and comes out, over the text that exports calibrate on."""
        ids = calibration.passage(partial(encoded, self.model))[:CALIBRATION]
        found: dict[str, Spread] = {}

        def see(name: str, _: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
            old, taken, made = found.get(name), _bounds(given[0]), _bounds(out)
            found[name] = Spread(_wider(taken, old.taken), _wider(made, old.given)) if old else Spread(taken, made)

        with ExitStack() as stack, progress("reading the calibration text"):
            for name, part in self.linears.items():
                stack.enter_context(part.register_forward_hook(partial(see, name)))
            for _ in self._logits(ids):
                pass
        return found


def _instead(stored: Matrix, _: nn.Module, given: tuple[Tensor], __: Tensor) -> Tensor:
    return stored.product(given[0])


def _bounds(x: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(x)
    return low.item(), high.item()


def _wider(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return min(one[0], other[0]), max(one[1], other[1])


def _perplexity(losses: Array) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(losses.mean()))
