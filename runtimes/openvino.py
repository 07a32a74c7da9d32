"""What of OpenVINO is on this machine, and how every use of it in a process is kept to float32; it runs nothing."""

from __future__ import annotations

import os
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

PACKAGE = "openvino"
COMPRESSOR = "nncf"
COMPRESSOR_UNFIT = (3, 3)  # it wants types that OpenVINO has since 2026
WEIGHTS = "model.bin"
FIRST_UNFIT = 2026
INSTRUCTIONS = "ONEDNN_MAX_CPU_ISA"
WITHOUT_BFLOAT16 = "AVX512_CORE_VNNI"


def absent() -> str | None:
    """Why there is no OpenVINO here, or None; it loads nothing."""
    found = find_spec(PACKAGE)
    return None if found else f"the Python package {PACKAGE} is not installed (pip install 'rwkv-export[openvino]')"


def cannot_compress() -> str | None:
    """Why weights cannot be compressed here, or None; it loads nothing."""
    if find_spec(COMPRESSOR) is None:
        return f"the Python package {COMPRESSOR} is not installed (pip install 'rwkv-export[openvino]')"
    found, own = version(COMPRESSOR), version(PACKAGE)
    if tuple(map(int, found.split(".")[:2])) >= COMPRESSOR_UNFIT and int(own.split(".")[0]) < FIRST_UNFIT:
        fit = f"{COMPRESSOR}<{'.'.join(map(str, COMPRESSOR_UNFIT))}"
        return f"{COMPRESSOR} {found} needs a later {PACKAGE} than {own}: pip install '{fit}'"
    return None


def missing() -> str | None:
    """Why ExecuTorch cannot compile or run OpenVINO's programs here, or None; it loads nothing."""
    if reason := absent():
        return reason
    found = version(PACKAGE)
    if int(found.split(".")[0]) >= FIRST_UNFIT:
        return f"{PACKAGE} {found} reads programs that ExecuTorch has freed: pip install '{PACKAGE}<{FIRST_UNFIT}'"
    return None


def keep_float32() -> None:
    """Limit the plug-in to instructions without bfloat16, unless the environment already says what it may use.

    Where the processor has them, it multiplies in bfloat16 by default, and ExecuTorch's programs cannot say otherwise:
    the delegate hands it no configuration, and what a graph was compiled with is not kept. It looks once, when anything
    in the process first uses it, so whoever does has to call this before.
    """
    os.environ.setdefault(INSTRUCTIONS, WITHOUT_BFLOAT16)


def core() -> Any:
    """OpenVINO's `Core`, in a process that is kept to float32."""
    keep_float32()
    from openvino import Core

    return Core()
