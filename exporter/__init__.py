"""Checkpoint to artifact. Knows runtimes' manifest and state; judges and measures nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.model import open_model, reference_session
    from exporter.pipeline import export
else:
    _HOMES = {"export": "pipeline", "open_model": "model", "reference_session": "model"}

    def __getattr__(name: str) -> Any:
        """Load torch only when one of the functions is asked for. Type checkers do not see this, and know the names."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = ["export", "open_model", "reference_session"]
