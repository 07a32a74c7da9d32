"""Whether ONNX Runtime's WebGPU provider, a package of its own, finds an adapter here, and which; it runs no model."""

from __future__ import annotations

import base64
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from runtimes.contract import Array
from runtimes.errors import Missing
from runtimes.ort_gpu import Gpu

PACKAGE, PROVIDER = "onnxruntime_ep_webgpu", "WebGpuExecutionProvider"
SOFTWARE = "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"

PROBE = base64.b64decode("CAg6MwoMCgF4EgF5IgRSZWx1EgFnWg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQEg==")
"""An ONNX model of one Relu, `y = Relu(x)`, float32."""


@cache
def missing() -> str | None:
    """Why the provider cannot be used, as a sentence, or None; a session of it is made, because nothing less tells."""
    try:
        import onnxruntime
    except ImportError:
        return "the Python package onnxruntime is not installed"
    if not find_spec(PACKAGE):
        return "the Python package onnxruntime-ep-webgpu is not installed (pip install 'rwkv-export[webgpu]')"
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        device().add(options)
        onnxruntime.InferenceSession(PROBE, options, enable_fallback=0)
    except Missing as error:
        return error.message
    except Exception as error:  # onnxruntime raises its own untyped family
        if "WebGPU adapter" not in str(error):
            return f"ONNX Runtime's WebGPU provider does not start: {str(error).rstrip().splitlines()[-1]}"
        return (
            "Vulkan, Metal or Direct3D has no adapter that WebGPU accepts: install the GPU's driver "
            "(Linux: with libvulkan1), or Mesa 25 or newer for a software adapter"
        )
    return None


@cache
def device() -> Gpu:
    """The first adapter; raises Missing where the provider lists none."""
    import onnxruntime
    import onnxruntime_ep_webgpu

    onnxruntime.set_default_logger_severity(3)  # it warns of a software adapter, which the environment asked for
    onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_ep_webgpu.get_library_path())
    found = [each for each in onnxruntime.get_ep_devices() if each.ep_name == PROVIDER]
    if not found:
        raise Missing(f"ONNX Runtime's WebGPU provider finds no GPU; {SOFTWARE}=1 allows it a software adapter")
    hardware = found[0].device
    memory = found[0].memory_info(onnxruntime.OrtDeviceMemoryType.DEFAULT)

    def new(shape: tuple[int, ...], dtype: Any) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, memory_info=memory)

    def write(tensor: Any, array: Array) -> None:
        given = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        onnxruntime.copy_tensors([given], [tensor])

    software = hardware.type != onnxruntime.OrtHardwareDeviceType.GPU
    kind = "software adapter" if software else f"{hardware.vendor} {hardware.vendor_id:04x}:{hardware.device_id:04x}"
    return Gpu(
        provider=PROVIDER,
        unit=f"{PROVIDER} on {kind.strip()}",
        add=lambda options: options.add_provider_for_devices(found[:1], {"enableGraphCapture": "1"}),
        new=new,
        write=write,
        emulated=software,
    )
