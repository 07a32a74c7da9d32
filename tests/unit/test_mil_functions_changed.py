"""An artifact of several functions, changed since it was right and hashed anew: `validate` sees it by running it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools_quiet import coremltools

from runtimes import manifest
from runtimes.manifest import Graph
from tests.unit.small_exports import checkpoint, exported
from validation import validate
from validation.outcome import Outcome, Parity

pytestmark = pytest.mark.slow

CHUNK = 4
PREFILL = f"prefill{CHUNK}"
PACKAGE = Path("model.mlpackage")
MODEL = PACKAGE / "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = PACKAGE / "Data/com.apple.CoreML/weights/weight.bin"
VALUE = "blocks.0.att.value.weight"
HEADER = 64  # bytes before a stored constant

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("7", "coreml", tmp_path_factory.mktemp("whole"), layers=2, precision="fp32", prefill=(CHUNK,))


def validated(whole: Path, folder: Path, change: Change) -> Parity:
    """The verdict on a changed copy, whose manifest has the hashes of what it now is."""
    path = folder / whole.name
    shutil.copytree(whole, path)
    change(path)
    document = manifest.read(path)
    manifest.write(replace(document, files=manifest.list_files(path)), path)
    (row,) = validate([path], steps=8, checkpoint=next(whole.parent.glob("*.pth"))).parity
    return row


def edited(change: Callable[[Any], None]) -> Change:
    """A change of the protobuf model."""

    def edit(path: Path) -> None:
        model = coremltools.proto.Model_pb2.Model.FromString((path / MODEL).read_bytes())
        change(model)
        (path / MODEL).write_bytes(model.SerializeToString())

    return edit


def operations(model: Any, function: str) -> Any:
    found = model.mlProgram.functions[function]
    return found.block_specializations[found.opset].operations


def swapped(function: str) -> Callable[[Any], None]:
    """The operands of the first difference of two values."""

    def change(model: Any) -> None:
        inputs = next(item for item in operations(model, function) if item.type == "sub").inputs
        one, other = inputs["x"].arguments[0], inputs["y"].arguments[0]
        assert one.name != other.name
        one.name, other.name = other.name, one.name

    return change


def shifted(function: str) -> Callable[[Any], None]:
    """The first stored constant of a function that another one is alike takes that one's place in the weight file."""

    def change(model: Any) -> None:
        seen: dict[bytes, Any] = {}
        for item in operations(model, function):
            if item.type == "const" and item.attributes["val"].WhichOneof("value") == "blobFileValue":
                value = item.attributes["val"]
                before = seen.setdefault(value.type.SerializeToString(), value.blobFileValue)
                if len(value.type.tensorType.dimensions) == 2 and before.offset != value.blobFileValue.offset:
                    before.offset = value.blobFileValue.offset
                    return
        raise AssertionError("no two stored constants are alike")

    return change


def test_the_artifact_as_it_was_exported_passes(whole: Path, tmp_path: Path) -> None:
    row = validated(whole, tmp_path, lambda path: None)
    assert (row.outcome, row.reasons) == (Outcome.PASS, ())
    assert set(row.prefill) == {"1", str(CHUNK), "uneven"}
    assert [graph.function for graph in manifest.read(whole).graphs] == ["decode", PREFILL]


@pytest.mark.parametrize("change", [swapped, shifted])
def test_a_change_of_the_step_fails_from_the_first_reading(
    change: Callable[[str], Callable[[Any], None]], whole: Path, tmp_path: Path
) -> None:
    row = validated(whole, tmp_path, edited(change("decode")))
    assert row.outcome is Outcome.FAIL
    assert any(reason.startswith("local: ") for reason in row.reasons)


@pytest.mark.parametrize("change", [swapped, shifted])
def test_a_change_of_prefill_fails_there_only(
    change: Callable[[str], Callable[[Any], None]], whole: Path, tmp_path: Path
) -> None:
    row = validated(whole, tmp_path, edited(change(PREFILL)))
    assert row.outcome is Outcome.FAIL
    assert {reason.split(":")[0] for reason in row.reasons} <= {f"prefill {CHUNK}", "prefill uneven"}


def test_one_flipped_bit_of_a_weight_fails(whole: Path, tmp_path: Path) -> None:
    """The sign of the largest number of one matrix, which both functions share."""

    def flip(path: Path) -> None:
        weights = checkpoint("7", 2)[VALUE].numpy().astype("<f4")
        data = bytearray((path / WEIGHTS).read_bytes())
        start = data.index(weights.tobytes())
        data[start + 4 * int(np.abs(weights).argmax()) + 3] ^= 0x80
        (path / WEIGHTS).write_bytes(data)

    row = validated(whole, tmp_path, flip)
    assert row.outcome is Outcome.FAIL
    assert any("max|Δlogit|" in reason for reason in row.reasons)


def renamed(change: Callable[[Graph], Graph]) -> Change:
    """A change of the graphs in the manifest."""

    def rename(path: Path) -> None:
        document = manifest.read(path)
        manifest.write(replace(document, graphs=tuple(map(change, document.graphs))), path)

    return rename


def other_default(model: Any) -> None:
    model.description.defaultFunctionName = PREFILL


def exchanged(model: Any) -> None:
    """Each function under the other's name, in the program and in its description."""
    functions = model.mlProgram.functions
    step, prefill = (functions[name].SerializeToString() for name in ("decode", PREFILL))
    functions["decode"].ParseFromString(prefill)
    functions[PREFILL].ParseFromString(step)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            renamed(lambda graph: replace(graph, function=PREFILL)),
            "default function, which an app gets that names none, is decode; the step for one token is prefill4",
        ),
        (
            renamed(lambda graph: replace(graph, function="decode")),
            f"input tokens of model.mlpackage is int32[1], the manifest says int32[{CHUNK}]",
        ),
        (renamed(lambda graph: replace(graph, function=f"prefill{2 * CHUNK}")), "has no function 'prefill8'"),
        (edited(other_default), f"is {PREFILL}; the step for one token is decode"),
        (edited(exchanged), "in the program, int32[1] in the description"),
    ],
    ids=["prefill as the step", "the step as prefill", "no such function", "wrong default", "exchanged"],
)
def test_a_wrong_function_is_refused(change: Change, reason: str, whole: Path, tmp_path: Path) -> None:
    row = validated(whole, tmp_path, change)
    assert row.outcome is Outcome.ERROR
    assert reason in row.reasons[0]
