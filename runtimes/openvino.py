"""Whether ExecuTorch can use this machine's OpenVINO, and how its CPU plug-in is kept to float32; it runs nothing."""

from __future__ import annotations

import os
from importlib.metadata import version
from importlib.util import find_spec

PACKAGE = "openvino"
FIRST_UNFIT = 2026
INSTRUCTIONS = "ONEDNN_MAX_CPU_ISA"
WITHOUT_BFLOAT16 = "AVX512_CORE_VNNI"


def missing() -> str | None:
    """Why OpenVINO cannot compile or run programs here, or None; it loads nothing."""
    if find_spec(PACKAGE) is None:
        return f"the Python package {PACKAGE} is not installed"
    found = version(PACKAGE)
    if int(found.split(".")[0]) >= FIRST_UNFIT:
        return f"{PACKAGE} {found} reads programs that ExecuTorch has freed: pip install '{PACKAGE}<{FIRST_UNFIT}'"
    return None


def keep_float32() -> None:
    """Limit the plug-in to instructions without bfloat16, unless the environment already says what it may use.

    Where the processor has them, it multiplies in bfloat16 by default, and a program cannot say otherwise: the delegate
    hands it no configuration, and what a graph was compiled with is not kept. It looks when it is first used.
    """
    os.environ.setdefault(INSTRUCTIONS, WITHOUT_BFLOAT16)
