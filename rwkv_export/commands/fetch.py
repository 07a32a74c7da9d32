"""`rwkv-export fetch`."""

from __future__ import annotations

from rwkv_export.options import Quiet


def fetch(quiet: Quiet = False) -> None:
    """Placeholder."""
