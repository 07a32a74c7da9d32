"""Keeps OpenVINO's CPU plug-in to the float32 that programs are exported with; it finds no library and runs nothing."""

from __future__ import annotations

import os

INSTRUCTIONS = "ONEDNN_MAX_CPU_ISA"
WITHOUT_BFLOAT16 = "AVX512_CORE_VNNI"


def keep_float32() -> None:
    """Limit the plug-in to instructions without bfloat16, unless the environment already says what it may use.

    Where the processor has them, it multiplies in bfloat16 by default, and a program cannot say otherwise: the delegate
    hands it no configuration, and what a graph was compiled with is not kept. It looks when it is first used.
    """
    os.environ.setdefault(INSTRUCTIONS, WITHOUT_BFLOAT16)
