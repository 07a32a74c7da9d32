"""Opens ONNX graphs with ONNX Runtime's QNN execution provider, alone; it knows no artifact and judges nothing."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtimes.qnn import PACKAGE, device, muted

PROVIDER = "QNNExecutionProvider"
INSTALL = "pip install 'rwkv-export[qnn]'"
ANYWHERE_ELSE = "session.disable_cpu_ep_fallback"
"""Refuses to leave a node to the CPU: what is silently left there is right to the last digit, and proves nothing."""


def missing() -> str | None:
    """Whether this machine is one that QNN compiles for Hexagon processors on, and the packages are installed."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return f"QNN's compiler and emulator are for Linux on x86-64, this is {platform.system()} {platform.machine()}"
    return packages_missing()


def packages_missing() -> str | None:
    """Which package is not installed, with the command that brings it."""
    for module, name in {"onnxruntime": "onnxruntime", PACKAGE: "onnxruntime-qnn"}.items():
        if find_spec(module) is None:
            return f"the Python package {name} is not installed ({INSTALL})"
    return None


def compiling(chip: int) -> dict[str, str]:
    """Settings that compile for a processor: all graphs in its float16, also what turns inputs into integers and back.

    Without the number of a processor, QNN computes in float32, or refuses.
    """
    return {"soc_model": str(chip), "enable_htp_fp16_precision": "1", "offload_graph_io_quantization": "0"}


def session(path: Path, settings: Mapping[str, str], entries: Mapping[str, str], *, strict: bool = True) -> Any:
    """An onnxruntime.InferenceSession on the Hexagon; where `strict`, one that leaves nothing to the CPU or raises.

    settings: of the provider; entries: of the session

    What ONNX Runtime raises passes through: an untyped family of its own.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal only: what goes wrong is raised
    options.intra_op_num_threads = 1
    guards = {ANYWHERE_ELSE: "1" if strict else "0", "session.record_ep_graph_assignment_info": "1"}
    for name, value in {**guards, **entries}.items():
        options.add_session_config_entry(name, value)
    backend = {"backend_path": import_module(PACKAGE).get_qnn_htp_path()}
    options.add_provider_for_devices(_devices()[:1], {**backend, **settings})
    with muted(), device.as_published():
        return onnxruntime.InferenceSession(path, options, enable_fallback=0)  # or what fails goes on with the CPU


@cache
def _devices() -> list[Any]:
    """What the provider offers, a neural processor first; a library can be registered once."""
    import onnxruntime

    onnxruntime.register_execution_provider_library(PROVIDER, import_module(PACKAGE).get_library_path())
    found = [each for each in onnxruntime.get_ep_devices() if each.ep_name == PROVIDER]
    return sorted(found, key=lambda each: each.device.type != onnxruntime.OrtHardwareDeviceType.NPU)


def assigned(opened: Any) -> dict[str, Counter[str]]:
    """Execution provider -> the operators it took, read back from a session."""
    found: dict[str, Counter[str]] = {}
    for part in opened.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return found
