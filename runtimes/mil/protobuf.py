"""Core ML's protobuf classes, from coremltools' generated files but without importing coremltools itself.

`import coremltools` loads its converters and with them torch: seconds and hundreds of megabytes that reading a file
does not need. The generated modules only need one another.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_ALIAS = "runtimes.mil._coreml_proto"


def generated_files() -> Path | None:
    """The folder of coremltools' generated protobuf modules, or None where coremltools is not installed."""
    found = importlib.util.find_spec("coremltools")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / "proto"


@functools.cache
def _module(name: str) -> Any:
    if _ALIAS not in sys.modules:
        package = ModuleType(_ALIAS)
        package.__path__ = [str(generated_files())]
        sys.modules[_ALIAS] = package
    return importlib.import_module(f"{_ALIAS}.{name}")


def parse_model(data: bytes) -> Any:
    """A CoreML.Specification.Model; raises ValueError where the bytes are something else."""
    from google.protobuf.message import DecodeError

    try:
        return _module("Model_pb2").Model.FromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error


def element_name(code: int) -> str:
    """The name of a MIL DataType, "FLOAT16", or the code itself where this schema does not have it."""
    return _name(_module("MIL_pb2").DataType, code)


def feature_element_name(code: int) -> str:
    """The same for the ArrayDataType of a model's feature."""
    return _name(_module("FeatureTypes_pb2").ArrayFeatureType.ArrayDataType, code)


def _name(enumeration: Any, code: int) -> str:
    value = enumeration.DESCRIPTOR.values_by_number.get(code)
    return str(value.name) if value else str(code)
