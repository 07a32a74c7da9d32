"""Weight files: what coremltools' storage library writes is read back bit for bit, and damage is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from coremltools_quiet import coremltools  # noqa: F401 - loads the storage library's package without its noise

from runtimes.errors import BadArtifact
from runtimes.mil.blob import WeightFile
from runtimes.mil.types import ELEMENTS, TensorType

STORED = sorted(name for name, element in ELEMENTS.items() if element.code is not None)


def values(element: str, count: int) -> np.ndarray:
    """Every value a small type has, in an order that tells neighbours apart."""
    kind = ELEMENTS[element]
    if kind.dtype.startswith("float"):
        return np.random.default_rng(0).standard_normal(count).astype(kind.dtype)
    limits = np.iinfo(kind.dtype)
    low, high = (-8, 7) if element == "INT4" else (limits.min, min(limits.max, 2**kind.bits - 1))
    return np.random.default_rng(1).integers(low, high, count, endpoint=True).astype(kind.dtype)


def written(path: Path, *tensors: tuple[str, np.ndarray]) -> list[int]:
    """Offsets of tensors as coremltools' own library stores them."""
    from coremltools.libmilstoragepython import _BlobStorageWriter

    writer = _BlobStorageWriter(str(path), True)
    names = {"FLOAT16": "fp16", "FLOAT32": "float"}
    offsets = []
    for element, array in tensors:
        write = getattr(writer, f"write_{names.get(element, element.lower())}_data")
        offsets.append(write(array.view(np.uint16) if element == "FLOAT16" else array))
    return offsets


@pytest.mark.parametrize("count", [1, 7, 24, 1000])
@pytest.mark.parametrize("element", STORED)
def test_reads_what_the_storage_library_wrote(element: str, count: int, tmp_path: Path) -> None:
    expected = values(element, count)
    _, offset = written(tmp_path / "weight.bin", ("FLOAT32", values("FLOAT32", 5)), (element, expected))
    found = WeightFile(tmp_path / "weight.bin").read(offset, TensorType(element, (count, 1)))
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected.reshape(count, 1))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weight.bin"
    assert written(path, ("FLOAT16", values("FLOAT16", 8)), ("UINT4", values("UINT4", 9))) == [64, 192]
    return path


def test_a_tensor_of_whole_bytes_is_mapped_and_read_only(weights: Path) -> None:
    found = WeightFile(weights).read(64, TensorType("FLOAT16", (8,)))
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


@pytest.mark.parametrize(
    ("offset", "expected", "reason"),
    [
        (0, TensorType("FLOAT16", (8,)), "no record at offset 0"),
        (65, TensorType("FLOAT16", (8,)), "no record at offset 65"),
        (128, TensorType("FLOAT16", (8,)), "no record at offset 128: it begins with"),
        (2**40, TensorType("FLOAT16", (8,)), "it has 261 bytes"),
        (64, TensorType("INT16", (8,)), "element code 1"),
        (64, TensorType("BOOL", (16,)), "element code 1"),
        (64, TensorType("FLOAT16", (4,)), "holds 16 bytes"),
        (192, TensorType("UINT4", (10,)), "holds 5 bytes"),
    ],
)
def test_a_record_that_is_not_what_the_program_says_is_refused(
    weights: Path, offset: int, expected: TensorType, reason: str
) -> None:
    with pytest.raises(BadArtifact, match=reason):
        WeightFile(weights).read(offset, expected)


@pytest.mark.parametrize(("size", "reason"), [(0, "shorter"), (63, "shorter"), (140, "within the data")])
def test_a_truncated_file_is_refused(weights: Path, size: int, reason: str) -> None:
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(BadArtifact, match=reason):
        WeightFile(weights).read(64, TensorType("FLOAT16", (8,)))


@pytest.mark.parametrize(
    ("position", "value", "reason"),
    [
        (4, struct.pack("<I", 1), "version 1"),
        (64, b"\xee", "begins with 0xdeadbeee"),
        (68, struct.pack("<I", 2), "element code 2"),
        (72, struct.pack("<Q", 17), "17 bytes"),
        (80, struct.pack("<Q", 64), "within the data"),
        (80, struct.pack("<Q", 2**63), "within the data"),
    ],
)
def test_a_damaged_header_or_record_is_refused(weights: Path, position: int, value: bytes, reason: str) -> None:
    data = bytearray(weights.read_bytes())
    data[position : position + len(value)] = value
    weights.write_bytes(data)
    with pytest.raises(BadArtifact, match=reason):
        WeightFile(weights).read(64, TensorType("FLOAT16", (8,)))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="is missing"):
        WeightFile(tmp_path / "weight.bin")
