"""Logits of one step as far as both sides are known: whole, or the likeliest with what is left; no readings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from runtimes.contract import Array
from runtimes.errors import CheckFailed
from validation.trace import Likeliest, Logits, likeliest

Double = NDArray[np.float64]


@dataclass(frozen=True)
class Known:
    """Logits of one step as far as both sides are known, in float64.

    log_p:  log of each one's probability
    others: probability of all others together
    spread: standard deviation over the vocabulary
    """

    logits: Double
    log_p: Double
    others: float
    spread: float


def known(reference: Logits, target: Array) -> tuple[Known, Known]:
    """Both as far as the reference was kept; raises CheckFailed where they cannot be compared."""
    if isinstance(reference, Likeliest):
        if target.shape != (reference.vocab,):
            raise CheckFailed(f"logits has shape {target.shape}, the reference's is {(reference.vocab,)}")
        seen = (finite("the reference's logits", reference.logits), reference.logsumexp, reference.spread)
        out = finite("logits", target)
        pair = _excerpt(*seen), _excerpt(out[reference.ids], float(logsumexp(out)), float(out.std()))
    else:
        same_shape("logits", reference, target)
        ref, out = finite("the reference's logits", reference), finite("logits", target)
        pair = Known(ref, log_softmax(ref), 0.0, float(ref.std())), Known(out, log_softmax(out), 0.0, float(out.std()))
    if pair[0].spread == 0:
        raise CheckFailed("the reference's logits are all equal, so that nothing can be told from them")
    return pair


def _excerpt(logits: Double, total: float, spread: float) -> Known:
    log_p = logits - total
    return Known(logits, log_p, max(0.0, -float(np.expm1(logsumexp(log_p)))), spread)


def greedy(reference: Logits, ref: Known, target: Array) -> tuple[int, int, float]:
    """The reference's greedy token, the target's, and by how many logits at least the reference prefers its own.

    A token that is not among the likeliest has no larger logit than the last of them but one, which always is: the
    very last place may be taken by the token that follows.
    """
    best = int(ref.logits.argmax())
    chosen = int(target.argmax())
    if not isinstance(reference, Likeliest):
        return best, chosen, float(ref.logits[best] - ref.logits[chosen])
    known = np.flatnonzero(reference.ids == chosen)
    regret = ref.logits[best] - (ref.logits[known[0]] if known.size else ref.logits[-2])
    return int(reference.ids[best]), chosen, float(regret)


def divergence(ref: Known, out: Known) -> float:
    """KL(reference || target) in nats, all tokens that are not known taken as one."""
    total = float(np.sum(np.exp(ref.log_p) * (ref.log_p - out.log_p)))
    if ref.others and out.others:
        total += ref.others * float(np.log(ref.others / out.others))
    return max(0.0, total)  # rounding may leave -1e-17


def sqnr_db(reference: Double, error: Double) -> float | None:
    """10 log10(sum ref^2 / sum error^2); None where the error is zero."""
    noise = float(np.sum(error**2))
    return 10.0 * float(np.log10(np.sum(reference**2) / noise)) if noise else None


def overlap(reference: Logits, target: Array, count: int) -> float:
    """Share of the reference's `count` likeliest tokens that are among the target's."""
    count = min(count, target.size)
    if isinstance(reference, Likeliest):
        count = min(count, len(reference.ids) - 1)
        expected = set(reference.ids[:count].tolist())
    else:
        expected = set(likeliest(reference, count).tolist())
    return len(expected & set(likeliest(target, count).tolist())) / count


def same_shape(what: str, reference: Array, target: Array) -> None:
    """Raises CheckFailed where shapes differ or there is nothing in them."""
    if reference.shape != target.shape:
        raise CheckFailed(f"{what} has shape {target.shape}, the reference's is {reference.shape}")
    if not reference.size:
        raise CheckFailed(f"{what} is empty: shape {target.shape}")


def finite(what: str, array: Array) -> Double:
    """In float64; raises CheckFailed where values are NaN or infinite."""
    values = array.astype(np.float64)
    if odd := int(values.size - np.isfinite(values).sum()):
        kinds = "NaN" if np.isnan(values).any() else "infinite"
        raise CheckFailed(f"{odd} of {values.size} values of {what} are {kinds}")
    return values
