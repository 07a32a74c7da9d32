"""One sentence a tired engineer understands, from what was found."""

from __future__ import annotations

from dataclasses import replace

from validation.localise.findings import Found, Place


def sentence(found: Found) -> Found:
    """The same with its sentence."""
    return replace(found, sentence=_text(found))


def _text(found: Found) -> str:
    worst = found.most[0] if found.most else None
    if found.first:
        return _first(found, found.first)
    if worst is None:
        return "Nothing could be compared."
    largest = f"{where(worst)} adds {size(worst.relative)} of its largest number, {size(worst.level)} is allowed"
    if not found.lost:
        return f"Nothing is lost; most is added by {largest}."
    why = f" {found.cause.says}: {found.cause.why}" if found.cause else ""
    return f"Parity is lost, but at no single place; most is added by {largest}. The artifact{why}."


def _first(found: Found, place: Place) -> str:
    start = "Parity is lost first" if found.reasons else "The results still hold their bounds, but parity is lost"
    by = f"is off by {size(place.relative)} of its largest number by itself, {size(place.level)} is allowed"
    off = "gives infinity or NaN" if place.relative is None else by
    cause = ""
    if place.cause:
        detail = f" ({place.cause.detail})" if place.cause.detail else ""
        cause = f" It {place.cause.says}{detail}."
    return f"{start} in {where(place)}, which {off}.{cause}"


def where(place: Place) -> str:
    """ "blocks.3.att.key: MatMul node_linear_12"."""
    module = place.module or "the step"
    return f"{module}: {place.op or place.reference}"


def size(value: float | None) -> str:
    """Two digits; infinity and NaN by name."""
    return "inf or NaN" if value is None else f"{value:.2g}"
