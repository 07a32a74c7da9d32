"""What of a checkpoint float16 cannot hold: every tensor of its step in float32 over a text. It rounds no model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from exporter.contract import ModelSpec, Spelling
from exporter.graph import load_weights
from exporter.model import Model
from exporter.models.primitives import HeadNorm, LayerNorm
from exporter.progress import Progress, silent
from exporter.vocabulary import encoded
from runtimes.errors import Missing, WrongCall
from validation.fp16_risks import LARGEST, Audit, Decay, Range, decay_risks, range_risks
from validation.quality import Text

TOKENS = 256
"""Tokens read unless told."""

VANISHES = 2.0**-25  # what is no larger rounds to zero, ties going to the even neighbour


def audit(model: Model, text: Text, *, tokens: int = TOKENS, progress: Progress = silent) -> Audit:
    """Step a model through the beginning of a text; the whole model is in memory as float32.

    What the first token computes is left out: RWKV-4 starts from a stand-in for minus infinity.

    Raises WrongCall for nothing to read or a vocabulary of no known tokenizer, Missing without its file.
    """
    ids = _tokens(model, text, tokens)
    module = model.build(Spelling())
    load_weights(module, progress)
    watch = _Watch()
    with torch.no_grad(), progress(f"reading {text.name}", len(ids)) as advance, _watching(module, watch):
        _, *state = module(torch.tensor(ids[:1]), *_start(model))
        for token in ids[1:]:
            state = _step(module, token, state, model.spec, watch)
            advance(1)
    ranges = tuple(watch.ranges())
    decays = tuple(_decays(module, model.spec.version, watch))
    risks = (*range_risks(ranges), *decay_risks(decays))
    return Audit(model.checkpoint.name, model.spec.version, text.name, len(ids), ranges, decays, risks)


def _tokens(model: Model, text: Text, count: int) -> Sequence[int]:
    if count < 2:
        raise WrongCall(f"cannot audit over {count} tokens", hint="use 2 or more, better a hundred")
    ids = encoded(model, text.content)[:count]
    if len(ids) < 2:
        raise WrongCall(f"{text.name} has {len(ids)} tokens, too few to audit over", hint="name a longer text")
    if max(ids) >= model.spec.vocab:
        raise Missing(f"{text.name} has token {max(ids)}, outside this model's vocabulary of {model.spec.vocab}")
    return ids


def _start(model: Model) -> list[Tensor]:
    """The initial state with fills that are finite in float16, as float16 artifacts have it."""
    fresh = {spec.name: spec.stored_as("float16").initial() for spec in model.spec.state} | dict(model.initial)
    return [torch.from_numpy(array).float() for array in fresh.values()]


def _step(module: nn.Module, token: int, state: list[Tensor], spec: ModelSpec, watch: _Watch) -> list[Tensor]:
    watch.count.clear()
    new: list[Tensor]
    with watch:
        _, *new = module(torch.tensor([token]), *state)
    for tensor, value in zip(spec.state, new, strict=True):
        owner, _, name = tensor.name.rpartition(".")
        watch.see(owner, f"state {name}", value)
    return new


_MOVES = (torch.ops.aten._unsafe_view.default,)


@dataclass
class _Seen:
    """What `Range` is made of, growing."""

    values: int = 0
    largest: float = 0.0
    smallest: float = math.inf
    overflows: int = 0
    vanishing: int = 0
    ones: int = 0
    slowest: float = 0.0

    def add(self, x: Tensor) -> None:
        magnitude = x.abs()
        low, high = (bound.item() for bound in torch.aminmax(magnitude))
        self.values += x.numel()
        self.largest = max(self.largest, high)
        if not high <= LARGEST:
            self.overflows += int((~torch.isfinite(x.half())).sum())
        if low <= VANISHES:
            there = magnitude[magnitude > 0]
            self.vanishing += int((there <= VANISHES).sum())
            low = there.min().item() if len(there) else math.inf
        self.smallest = min(self.smallest, low)

    def add_decay(self, decay: Tensor) -> None:
        forgets = decay[decay < 1]
        self.ones += int((forgets.half() == 1).sum())
        self.slowest = max(self.slowest, forgets.max().item() if len(forgets) else 0.0)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what every operation computes, whose module is on top of `path`, and which one of its kind there it is."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path: list[str] = []
        self.seen: dict[tuple[str, str], _Seen] = {}
        self.count: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        first = made[0] if isinstance(made, tuple | list) else made
        if (
            func not in _MOVES
            and not func.is_view
            and isinstance(first, Tensor)
            and first.is_floating_point()
            and self.path
        ):
            module, kind = self.path[-1], str(func.overloadpacket.__name__)
            self.count[module, kind] += 1
            seen = self.see(module, f"{kind} {self.count[module, kind]}", first)
            if kind == "exp":
                seen.add_decay(first)
        return made

    def see(self, module: str, what: str, x: Tensor) -> _Seen:
        seen = self.seen.setdefault((module, what), _Seen())
        seen.add(x)
        return seen

    def ranges(self) -> Iterator[Range]:
        for (module, what), seen in self.seen.items():
            smallest = seen.smallest if seen.largest else 0.0
            yield Range(module, what, seen.values, seen.largest, smallest, seen.overflows, seen.vanishing)


@contextmanager
def _watching(model: nn.Module, watch: _Watch) -> Iterator[None]:
    """Within the block `watch` knows which module computes, and sees the squares that norms would compute."""

    def enter(name: str, *_: object) -> None:
        watch.path.append(name)

    def leave(*_: object) -> None:
        watch.path.pop()

    with ExitStack() as hooks:
        for name, part in model.named_modules():
            hooks.enter_context(part.register_forward_pre_hook(partial(enter, name)))
            if isinstance(part, LayerNorm | HeadNorm):
                hooks.enter_context(part.register_forward_pre_hook(partial(_squares, watch, name)))
            hooks.enter_context(part.register_forward_hook(leave))
        yield


def _squares(watch: _Watch, name: str, _: nn.Module, given: tuple[Tensor]) -> None:
    path, watch.path = watch.path, []  # what follows is not the model's
    centred = given[0] - given[0].mean(-1, keepdim=True)
    watch.see(name, "squares", centred * centred)
    watch.path = path


def _decays(model: nn.Module, version: str, watch: _Watch) -> Iterator[Decay]:
    """Constant ones are parameters, in RWKV-4 the logarithm's loss; since RWKV-6 they are computed for every token."""
    for name, part in model.named_modules():
        if not name.endswith("att.recurrence"):
            continue
        seen = watch.seen.get((name, "exp 1"), _Seen())
        if isinstance(constant := getattr(part, "decay", None), Tensor):
            seen = _Seen(values=constant.numel())
            seen.add_decay(torch.exp(-constant) if version == "4" else constant)
        yield Decay(name.removesuffix(".recurrence"), seen.values, seen.ones, seen.slowest)
