"""Imports coremltools once, without what it prints about this machine; tests take it from here."""

from __future__ import annotations

from exporter.quiet import quiet

with quiet():
    import coremltools
    from coremltools.converters.mil.mil import Builder, Function, types

__all__ = ["Builder", "Function", "coremltools", "types"]
