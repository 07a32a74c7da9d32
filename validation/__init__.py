"""Is an artifact right, how fast is it, and what changed: artifacts in, results out. Exports nothing itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from validation.comparison import compare
    from validation.runner import exit_code, measure, validate

_HOMES = {"compare": "comparison", "exit_code": "runner", "measure": "runner", "validate": "runner"}


def __getattr__(name: str) -> Any:
    """Load what runs artifacts only when it is asked for: reading and reporting results needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = ["compare", "exit_code", "measure", "validate"]
