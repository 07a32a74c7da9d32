"""LiteRT: how a process that can import its converter or its interpreter is started; what runs in there is beside."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from runtimes.agent import bundle
from runtimes.environments.litert import ENVIRONMENT

CONVERTER, INTERPRETER = "litert_torch", "ai_edge_litert"
"""Their own top-level packages."""


def missing(package: str) -> str | None:
    """Whether the package is importable, here or in the environment."""
    return None if find_spec(package) else ENVIRONMENT.missing()


def process(package: str, module: str) -> tuple[Sequence[str], dict[str, str]]:
    """The command line that runs a module of `runtimes` where the package is, and the variables for it."""
    python = sys.executable if find_spec(package) else str(ENVIRONMENT.python)
    return [python, "-P", "-m", module], bundle.environment(bundle.archive())
