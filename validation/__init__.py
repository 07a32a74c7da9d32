"""Is an artifact right, how fast is it, and what changed: artifacts in, results out. Exports nothing itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from validation.runner import exit_code, measure, validate


def __getattr__(name: str) -> Any:
    """Load what runs artifacts only when it is asked for: reading and reporting results needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from validation import runner

    return getattr(runner, name)


__all__ = ["exit_code", "measure", "validate"]
