"""Is an artifact right, how fast is it, and what changed: artifacts in, results out. Exports nothing itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from validation.comparison import Change, compare, regressed
    from validation.outcome import Outcome, Results, read, write
    from validation.runner import exit_code, measure, validate
else:
    _HOMES = {
        "comparison": ("Change", "compare", "regressed"),
        "outcome": ("Outcome", "Results", "read", "write"),
        "runner": ("exit_code", "measure", "validate"),
    }

    def __getattr__(name: str) -> Any:
        """Load what runs artifacts only when it is asked for. Type checkers do not see this, and know the names."""
        home = next((home for home, names in _HOMES.items() if name in names), None)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{home}"), name)


__all__ = [
    "Change",
    "Outcome",
    "Results",
    "compare",
    "exit_code",
    "measure",
    "read",
    "regressed",
    "validate",
    "write",
]
