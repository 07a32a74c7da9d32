"""From compared numbers to a verdict in sentences; it runs nothing and knows bounds only as it is given them."""

from __future__ import annotations

from collections.abc import Sequence

from runtimes.contract import Placement
from validation.metrics import Comparison, TensorError, scale
from validation.outcome import Bound, Outcome, TextReading


def broken(label: str, comparison: Comparison, bound: Bound) -> list[str]:
    """Each bound that the comparison breaks as a sentence: where, what, and both numbers."""
    found = [
        _logits(comparison, bound),
        _divergence(comparison, bound),
        _greedy(comparison, bound),
        _state(comparison, bound),
    ]
    return [f"{label}: {sentence}" for sentence in found if sentence]


def broken_on_text(reading: TextReading, bound: Bound, text: str) -> list[str]:
    """The sentence where the mean KL over a text breaks its bound, which NaN does; else nothing."""
    if reading.kl_mean <= bound.mean_kl:
        return []
    return [
        f"mean KL {reading.kl_mean:.3g} nats over {reading.tokens} tokens of {text} exceeds {bound.mean_kl:.3g} "
        f"({bound.name}): perplexity {reading.perplexity:.4g}, the checkpoint's is {reading.reference_perplexity:.4g}"
    ]


def verdict(
    reasons: Sequence[str], bound: Bound, *, exact: bool, requested: str, placed: Placement
) -> tuple[Outcome, tuple[str, ...]]:
    """The outcome and every reason for it. A broken bound weighs more than a fallback, that more than a zero error.

    exact: every logit equalled the reference's
    """
    reasons = list(reasons)
    outcome = Outcome.FAIL if reasons else Outcome.PASS
    if elsewhere := fallback(requested, placed):
        reasons.append(elsewhere)
        outcome = Outcome.FALLBACK if outcome is Outcome.PASS else outcome
    if bound.rounds and exact:
        reasons.append(
            f"every logit equals the reference's exactly, which {bound.name} arithmetic cannot do: "
            "the reference seems to have been compared with itself"
        )
        outcome = Outcome.SUSPICIOUS if outcome is Outcome.PASS else outcome
    return outcome, tuple(reasons)


def fallback(requested: str, placed: Placement) -> str | None:
    """The sentence about a session that ran elsewhere than asked."""
    if placed.observed == requested:
        return None
    nodes = ", ".join(f"{unit}: {count}" for unit, count in placed.nodes.items())
    return f"asked for {requested}, ran on {placed.observed}" + (f" ({nodes})" if nodes else "")


def _logits(comparison: Comparison, bound: Bound) -> str | None:
    worst = max(comparison.steps, key=lambda index: comparison.steps[index].max_abs)
    error = comparison.steps[worst].max_abs
    if error <= bound.max_abs:
        return None
    first = next(index for index, step in comparison.steps.items() if step.max_abs > bound.max_abs)
    since = f", first at step {first}" if first != worst else ""
    return f"max|Δlogit| {error:.3g} at step {worst} exceeds {bound.max_abs:.3g} ({bound.name}){since}"


def _divergence(comparison: Comparison, bound: Bound) -> str | None:
    worst = max(comparison.steps, key=lambda index: comparison.steps[index].kl)
    kl = comparison.steps[worst].kl
    if kl <= bound.kl:
        return None
    return f"KL {kl:.3g} nats at step {worst} exceeds {bound.kl:.3g} ({bound.name})"


def _greedy(comparison: Comparison, bound: Bound) -> str | None:
    """Only tokens that no allowed rounding explains count: the reference's preference must exceed 2 * max_abs."""
    wrong = [index for index, step in comparison.steps.items() if step.regret > 2 * bound.max_abs]
    share = 1 - len(wrong) / len(comparison.steps)
    if share >= bound.top1:
        return None
    regret = comparison.steps[wrong[0]].regret
    return (
        f"greedy token differs at step {wrong[0]}, where the reference prefers its own by {regret:.3g}: "
        f"top-1 {share:.3g} is below {bound.top1:.3g} ({bound.name})"
    )


def _state(comparison: Comparison, bound: Bound) -> str | None:
    """Names the first tensor in graph order: later layers inherit its error."""
    limits = {name: bound.state_rel * scale(comparison, name) for name in next(iter(comparison.states.values()))}
    peaks = {name: _peak(comparison, name) for name in limits}
    over = [name for name, (_, error) in peaks.items() if error.max_abs > limits[name]]
    if not over:
        return None
    index, error = peaks[over[0]]
    relative = error.max_abs / scale(comparison, over[0])
    where = f"after step {index}" if index >= 0 else "before the first step"
    more = f"; {len(over) - 1} more tensors too" if len(over) > 1 else ""
    return (
        f"state {over[0]} is off by {error.max_abs:.3g} {where}, "
        f"{relative:.3g} of its largest value exceeds {bound.state_rel:.3g} ({bound.name}){more}"
    )


def _peak(comparison: Comparison, name: str) -> tuple[int, TensorError]:
    """The state where a tensor's error is largest, and that error."""
    index = max(comparison.states, key=lambda index: comparison.states[index][name].max_abs)
    return index, comparison.states[index][name]
