"""Rockchip's toolkit: how a process that can import it is started; what runs in there is in toolkit.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from runtimes.agent import bundle
from runtimes.environments.rknn import ENVIRONMENT

TOOLKIT = "rknn"
"""The toolkit's own top-level package."""

STEADY = {"MALLOC_PERTURB_": "255", "PYTHONHASHSEED": "0"}
"""The toolkit writes memory it never set into its files; filled with a constant, less of it differs between two."""


def missing() -> str | None:
    """Whether the toolkit is importable, here or in its environment."""
    return None if find_spec(TOOLKIT) else ENVIRONMENT.missing()


def process(module: str, *arguments: str) -> tuple[Sequence[str], dict[str, str]]:
    """The command line that runs a module of `runtimes` where the toolkit is, and the variables for it."""
    python = sys.executable if find_spec(TOOLKIT) else str(ENVIRONMENT.python)
    return [python, "-P", "-m", module, *arguments], bundle.environment(bundle.archive()) | STEADY
