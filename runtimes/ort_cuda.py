"""Whether this ONNX Runtime has CUDA and a GPU for it, and how its sessions use that; it runs no model."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from runtimes.contract import Array
from runtimes.ort_gpu import Gpu

PROVIDER = "CUDAExecutionProvider"
OPTIONS = {"enable_cuda_graph": "1", "use_tf32": "0"}  # float32 is float32


@cache
def missing() -> str | None:
    """Why the provider cannot be used, as a sentence, or None."""
    try:
        import onnxruntime
    except ImportError:
        return "the Python package onnxruntime is not installed"
    if PROVIDER not in onnxruntime.get_available_providers():
        return f"this onnxruntime has no {PROVIDER} (pip install onnxruntime-gpu in place of onnxruntime)"
    onnxruntime.preload_dlls()  # CUDA's libraries where they came as Python packages
    try:
        device().new((1,), np.float32)
    except Exception as error:  # onnxruntime raises its own untyped family
        return f"ONNX Runtime cannot use a CUDA device: {str(error).rstrip().splitlines()[-1]}"
    return None


@cache
def device() -> Gpu:
    """The first CUDA device."""
    import onnxruntime

    def new(shape: tuple[int, ...], dtype: Any) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, "cuda", 0)

    def write(tensor: Any, array: Array) -> None:
        tensor.update_inplace(np.ascontiguousarray(array))

    return Gpu(
        provider=PROVIDER,
        unit=PROVIDER,
        add=lambda options: options.add_provider(PROVIDER, OPTIONS),
        new=new,
        write=write,
    )
