"""Compares logits and states of two runs and returns numbers; no verdicts and no tolerances, those are parity's.

Names, count, shape and finiteness are checked first: what cannot be compared raises CheckFailed with one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from runtimes.contract import HALF_FILL, Array
from runtimes.errors import CheckFailed
from validation.excerpts import divergence, finite, greedy, known, overlap, same_shape, sqnr_db
from validation.outcome import Reading, TextReading
from validation.trace import Likeliest, Logits

TEN, FIVE = 10, 5
STATE_FLOOR = 1e-3
"""State tensors that never reach this magnitude are measured against it: relative to nought, rounding is everything.
Layer norms keep activations near 1, so a tensor this small contributes nothing."""


@dataclass(frozen=True)
class StepError:
    """One step's logits compared; fields as in Reading.

    regret: how much the reference prefers its own greedy token to the target's, in logits; 0 where they agree
    whole:  all logits were compared; else what is said here is the least that it can be
    """

    max_abs: float
    rel_std: float
    sqnr_db: float | None
    kl: float
    top1: bool
    top10: float
    regret: float
    whole: bool = True


@dataclass(frozen=True)
class Prediction:
    """Two predictions of one token that is known, compared; in nats.

    loss, reference_loss: -log of the probability that each gives to the token
    top1:  whether the likeliest token is the same
    top5:  share of the reference's five likeliest that are among the artifact's
    exact: whether every logit is
    """

    kl: float
    loss: float
    reference_loss: float
    top1: bool
    top5: float
    exact: bool


@dataclass(frozen=True)
class TensorError:
    """One state tensor compared; `magnitude` is the largest absolute reference value.

    reference_norm, norm: the tensor's Euclidean norm in the reference and in the artifact
    """

    max_abs: float
    magnitude: float
    reference_norm: float = 0.0
    norm: float = 0.0


StateErrors = Mapping[str, TensorError]


@dataclass(frozen=True)
class Comparison:
    """Everything compared over a token sequence, in its order; filled as the sequence runs.

    steps:  step -> its logits' error
    states: step -> the error of the state after it; -1 is the initial state
    """

    steps: dict[int, StepError] = field(default_factory=dict)
    states: dict[int, StateErrors] = field(default_factory=dict)


def compare_step(reference: Logits, target: Array) -> StepError:
    """Compare logits of shape (vocab,) in float64; raises CheckFailed where they cannot be compared.

    Where the reference was not kept whole, errors are those of what was kept, and KL is that between the likeliest
    tokens and all others as one, which is no more than KL itself (data processing inequality).
    """
    ref, out = known(reference, target)
    best_ref, best_out, regret = greedy(reference, ref, target)
    error = out.logits - ref.logits
    worst = float(np.abs(error).max())
    return StepError(
        max_abs=worst,
        rel_std=worst / ref.spread,
        sqnr_db=sqnr_db(ref.logits, error),
        kl=divergence(ref, out),
        top1=best_ref == best_out,
        top10=overlap(reference, target, TEN),
        regret=regret,
        whole=not isinstance(reference, Likeliest),
    )


def compare_prediction(reference: Logits, target: Array, token: int) -> Prediction:
    """Compare logits of shape (vocab,) that predict `token`, in float64; raises CheckFailed as compare_step does."""
    ref, out = known(reference, target)
    best_ref, best_out, _ = greedy(reference, ref, target)
    at = int(np.flatnonzero(reference.ids == token)[0]) if isinstance(reference, Likeliest) else token
    return Prediction(
        kl=divergence(ref, out),
        loss=float(-out.log_p[at]),
        reference_loss=float(-ref.log_p[at]),
        top1=best_ref == best_out,
        top5=overlap(reference, target, FIVE),
        exact=bool(np.array_equal(ref.logits, out.logits)),
    )


def read_text(predictions: Sequence[Prediction], *, size: int) -> TextReading:
    """Summarise at least one prediction of tokens of `size` bytes together; a perplexity may be infinite."""
    if not predictions:
        raise CheckFailed("nothing was predicted")
    kl = [prediction.kl for prediction in predictions]
    with np.errstate(over="ignore"):
        perplexity, expected = (
            float(np.exp(np.mean(losses)))
            for losses in ([each.loss for each in predictions], [each.reference_loss for each in predictions])
        )
    return TextReading(
        tokens=len(predictions),
        bytes=size,
        kl_mean=float(np.mean(kl)),
        kl_p99=float(np.quantile(kl, 0.99)),
        perplexity=perplexity,
        reference_perplexity=expected,
        top1=float(np.mean([prediction.top1 for prediction in predictions])),
        top5=float(np.mean([prediction.top5 for prediction in predictions])),
    )


def compare_state(reference: Mapping[str, Array], target: Mapping[str, Array]) -> dict[str, TensorError]:
    """Compare state tensors by name in float64, in the reference's order; raises CheckFailed.

    Axes of one are no difference: some runtimes want (1, 1, C) for (1, C).

    v4's running maximum starts at -1e30, in float16 at HALF_FILL, and both stand for minus infinity. So everything
    below HALF_FILL counts as HALF_FILL, and does not count as magnitude; any other start, such as 0, is an error.
    """
    check_state(reference, target)
    errors = {}
    for name, array in reference.items():
        ref = finite(f"the reference's state {name}", array)
        out = finite(f"state {name}", target[name]).reshape(ref.shape)
        real = np.abs(ref[ref > HALF_FILL])
        error = np.maximum(out, HALF_FILL) - np.maximum(ref, HALF_FILL)
        norms = (float(np.linalg.norm(real)), float(np.linalg.norm(out[out > HALF_FILL])))
        errors[name] = TensorError(float(np.abs(error).max()), float(real.max(initial=0.0)), *norms)
    return errors


def check_state(reference: Mapping[str, Array], target: Mapping[str, Array]) -> None:
    """Both hold the same names with the same shapes, axes of one aside; raises CheckFailed."""
    if not reference:
        raise CheckFailed("the reference has no state tensors to compare")
    if absent := [name for name in reference if name not in target]:
        raise CheckFailed(f"the state lacks {_listing(absent)}")
    if extra := [name for name in target if name not in reference]:
        raise CheckFailed(f"the state has {_listing(extra)}, which the reference lacks")
    for name, array in reference.items():
        if [n for n in array.shape if n != 1] != [n for n in target[name].shape if n != 1]:
            same_shape(f"state {name}", array, target[name])


def read(comparison: Comparison) -> Reading:
    """Summarise at least one step and one state; raises CheckFailed where nothing was compared."""
    steps, states = list(comparison.steps.values()), list(comparison.states.values())
    if not steps or not states:
        raise CheckFailed("nothing was compared")
    names, at = states[0], tuple(comparison.steps)
    return Reading(
        max_abs=tuple(step.max_abs for step in steps),
        rel_std=tuple(step.rel_std for step in steps),
        sqnr_db=tuple(step.sqnr_db for step in steps),
        kl=tuple(step.kl for step in steps),
        top1=float(np.mean([step.top1 for step in steps])),
        top10=float(np.mean([step.top10 for step in steps])),
        first_divergent=next((index for index, step in comparison.steps.items() if not step.top1), None),
        state_max_abs={name: max(state[name].max_abs for state in states) for name in names},
        state_rel={name: max(state[name].max_abs for state in states) / scale(comparison, name) for name in names},
        at=None if at == tuple(range(len(at))) else at,
    )


def scale(comparison: Comparison, name: str) -> float:
    """What a state tensor's error is divided by: its largest magnitude in any state, at least STATE_FLOOR."""
    return max(STATE_FLOOR, *(state[name].magnitude for state in comparison.states.values()))


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
