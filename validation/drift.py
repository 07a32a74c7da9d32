"""Does a free-running error grow with the step, and does the state? Fits and a sentence; it judges nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.stats import theilslopes

from runtimes.contract import Array
from validation.metrics import Comparison
from validation.outcome import Bound, Drift

FEWEST = 256
"""Steps below which no slope is told: errors of single steps scatter by more than a short run could drift."""
BLOCKS = 32
"""Stretches of equal length whose means are fitted, because the errors of neighbours are alike."""
MATTERS = 0.1
"""Of the mean error: what a slope adds over the whole run, if it is to be called growth."""


def drift(comparison: Comparison, bound: Bound) -> Drift | None:
    """How the largest logit error goes with the step, by Sen's slope over means of stretches; None for few steps.

    A slope counts only if its 95 % interval leaves out zero and it adds MATTERS of the error over the run. A growing
    error is called linear or logarithmic by the smaller sum of squares. Where some steps were compared whole and others
    in part, the kind with more steps is taken.
    """
    partial = [step for step, error in comparison.steps.items() if not error.whole]
    whole = [step for step, error in comparison.steps.items() if error.whole]
    steps = np.array(max(partial, whole, key=len))
    if len(steps) < FEWEST:
        return None
    errors = np.array([comparison.steps[step].max_abs for step in steps.tolist()])
    at, means = (np.array([part.mean() for part in np.array_split(values, BLOCKS)]) for values in (steps, errors))
    slope, _, low, high = (1000 * float(value) for value in theilslopes(means, at, 0.95))
    early, late = float(means[: BLOCKS // 8].mean()), float(means[-BLOCKS // 8 :].mean())
    matters = abs(slope) / 1000 * (at[-1] - at[0]) >= MATTERS * means.mean()
    shape = "flat" if not matters or low <= 0 <= high else "falling" if high < 0 else _growing(at, means)
    found = Drift(len(comparison.steps), early, late, slope, low, high, shape, *_norms(comparison), says="")
    return replace(found, says=f"{_error_words(found, bound)}; {_state_words(found)}")


def _growing(at: Array, means: Array) -> str:
    def unexplained(x: Array) -> float:
        return float(np.sum((means - np.polyval(np.polyfit(x, means, 1), x)) ** 2))

    return "linear" if unexplained(at) <= unexplained(np.log(at + 1)) else "logarithmic"


def _norms(comparison: Comparison) -> tuple[str, float, float, float]:
    """The tensor that grew by the largest factor since a quarter of the run: its name and norms, as Drift has them."""
    last = max(comparison.states)
    then = min((step for step in comparison.states if step >= 0), key=lambda step: abs(step - last // 4))
    early, late = comparison.states[then], comparison.states[last]
    name = max(late, key=lambda name: late[name].norm / max(early[name].norm, 1e-30))
    return name, early[name].norm, late[name].norm, late[name].reference_norm


def _error_words(found: Drift, bound: Bound) -> str:
    spread = f"{found.slope:+.2g} per 1000 tokens, 95 % interval {found.low:+.2g} to {found.high:+.2g}"
    about = f"{found.early:.2g} early, {found.late:.2g} late of {found.steps} tokens"
    if found.shape == "flat":
        return f"the error does not grow ({about}; {spread})"
    if found.shape == "falling":
        return f"the error falls ({about}; {spread})"
    if found.shape == "logarithmic":
        return f"the error grows ever more slowly, as the logarithm of the token does ({about}; {spread})"
    left = (bound.max_abs - found.late) / found.slope * 1000
    until = f", at which the bound of {bound.max_abs:.2g} would be reached {left:,.0f} tokens later" if left > 0 else ""
    return f"the error grows steadily ({about}; {spread}){until}"


def _state_words(found: Drift) -> str:
    factor = found.norm / max(found.norm_early, 1e-30)
    return (
        f"of all state norms that of {found.tensor} grew most since a quarter of the run, {factor:.2f} times, "
        f"from {found.norm_early:.3g} to {found.norm:.3g} (the checkpoint's: {found.reference_norm:.3g})"
    )
