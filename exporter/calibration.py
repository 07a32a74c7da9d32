"""What the projections of a model take on a text, as second moments, for rounding that minds it; it rounds nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from exporter import bundled
from exporter.checkpoint import check_finite
from exporter.contract import ModelSpec, Option, Target
from exporter.graph import arguments, holding
from exporter.models.layers import Linear, StepModel
from exporter.models.parameters import value
from exporter.progress import Progress
from runtimes.contract import Array
from runtimes.errors import WrongCall
from runtimes.tokenizer import kind_for

SKIPPED = 20_000  # characters; what `validate` reads of the same text, unless told otherwise, ends well before
TOKENS = 4096
CALL = 64  # tokens

OPTION = Option(
    "calibrate",
    ("none", "gptq"),
    "none",
    "with 4 bits: round by what that costs on 4096 tokens of the bundled text; the model is in memory then",
)


def refuse(spec: ModelSpec, precision: str, option: str, *, four_bits: bool) -> None:
    """Raise WrongCall for a calibration without 4 bits to calibrate, or without a tokenizer to read with."""
    if option == "none":
        return
    hint = f"leave out -O {OPTION.name}={option}"
    if not four_bits:
        raise WrongCall(f"precision {precision} stores no matrix in 4 bits to calibrate", hint=hint)
    require_tokenizer(spec, hint)


def require_tokenizer(spec: ModelSpec, hint: str) -> None:
    """Raise WrongCall where no text can be read."""
    if kind_for(spec.vocab) == "none":
        raise WrongCall(f"no known tokenizer has {spec.vocab} tokens to read a text with", hint=hint)


def read_text(path: Path) -> str:
    """A text to calibrate on; raises WrongCall where it cannot be read, is empty, or not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WrongCall(f"cannot read {path} to calibrate on: {error}", hint="name a plain text file") from error
    if not text.strip():
        raise WrongCall(f"{path} has no text to calibrate on", hint="a page or more is enough")
    return text


def require_read(target: Target, precision: str, options: Mapping[str, str], text: str) -> Mapping[str, str]:
    """What the manifest's options say of a text; raises WrongCall where the export would not read it."""
    if precision not in target.calibrated and options.get(OPTION.name, "none") == "none":
        hint = f"-p {' or '.join(target.calibrated)}" if target.calibrated else f"-O {OPTION.name}=gptq, with 4 bits"
        raise WrongCall(f"{target.name} in {precision} reads no text to calibrate on", hint=hint)
    return {"calibration": hashlib.sha256(text.encode()).hexdigest()}


def passage(encode: Callable[[str], Sequence[int]], text: str | None = None) -> Sequence[int]:
    """The tokens to calibrate on: of `text`, or of the bundled one what `validate` does not read, from SKIPPED on."""
    if text is None:
        text = bundled.HELDOUT.read_text("ascii")[SKIPPED:]
    return encode(text)[:TOKENS]


def inputs_of(model: nn.Module, spec: ModelSpec, tokens: Sequence[int], progress: Progress) -> Mapping[str, Array]:
    """X^T X / n of the inputs X (n, K) of every linear of a step module, (K, K) float32, by its weight's name.

    Tokens are read in calls of CALL, the state carried from the one a model starts with. Meanwhile the whole model is
    in memory as float32, and afterwards the moments, K^2 values a linear; the module itself is left as it was. Raises
    BadCheckpoint where an input is not finite.
    """
    sums: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        if name not in sums:
            sums[name] = x.new_zeros(x.shape[-1], x.shape[-1])
        sums[name].addmm_(x.T, x)

    _watch(model, spec, tokens, see, progress)
    for name, moment in sums.items():
        check_finite(f"what {name} takes", moment)
    return {name: (moment / len(tokens)).numpy() for name, moment in sums.items()}


def ranges_of(
    model: nn.Module, spec: ModelSpec, tokens: Sequence[int], progress: Progress
) -> Mapping[str, tuple[float, float]]:
    """The least and the largest input of every linear of a step module, by its weight's name; else as `inputs_of`."""
    found: dict[str, tuple[float, float]] = {}

    def see(name: str, x: Tensor) -> None:
        check_finite(f"what {name} takes", x)
        least, largest = found.get(name, (0.0, 0.0))
        found[name] = min(least, float(x.min())), max(largest, float(x.max()))

    _watch(model, spec, tokens, see, progress)
    return found


def _watch(
    model: nn.Module, spec: ModelSpec, tokens: Sequence[int], see: Callable[[str, Tensor], None], progress: Progress
) -> None:
    step = cast(StepModel, model)
    with holding(model, _values(model, progress)), _watched(step, see):
        _read(step, spec, tokens, progress)


def _values(model: nn.Module, progress: Progress) -> dict[str, Tensor]:
    values, parameters = {}, dict(model.named_parameters())
    with progress("reading the weights", len(parameters)) as advance:
        for name, made in parameters.items():
            values[name] = value(made)
            advance(1)
    return values


@torch.no_grad()
def _read(model: StepModel, spec: ModelSpec, tokens: Sequence[int], progress: Progress) -> None:
    _, *state = arguments(spec, 1)
    with progress("calibrating", len(tokens)) as advance:
        for start in range(0, len(tokens), CALL):
            some = torch.tensor(tokens[start : start + CALL])
            _, *state = model(some, *state)
            advance(len(some))


@contextmanager
def _watched(model: StepModel, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block `see` is called with a weight's name and what its linear takes, (T, K).

    A call computes the logits of its last token only; the head is shown what it would take for the others too.
    """

    def taken(name: str, _: nn.Module, given: tuple[Tensor]) -> None:
        see(name, *given)

    def leaving(_: nn.Module, __: object, made: tuple[Tensor, ...]) -> None:
        see("head.weight", model.ln_out(made[0]))

    with ExitStack() as hooks:
        for path, part in model.named_modules():
            if isinstance(part, Linear) and part is not model.head:
                hooks.enter_context(part.register_forward_pre_hook(partial(taken, f"{path}.weight")))
        hooks.enter_context(model.blocks[-1].register_forward_hook(leaving))
        yield
