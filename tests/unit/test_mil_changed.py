"""A package that was changed since it was right: refused with a reason, or its answers differ visibly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mil_models
import pytest
from coremltools_quiet import coremltools
from mil_models import largest_difference, steps, torch_steps

from runtimes.errors import BadArtifact
from runtimes.mil.package import Package

Change = Callable[[Any], None]

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mil_models.save(tmp_path_factory.mktemp("single") / "model.mlpackage", precision="fp32")


def changed(source: Path, folder: Path, change: Change) -> Path:
    """A copy whose protobuf model went through `change`."""
    path = folder / "changed.mlpackage"
    shutil.copytree(source, path)
    model = coremltools.proto.Model_pb2.Model.FromString((path / MODEL).read_bytes())
    change(model)
    (path / MODEL).write_bytes(model.SerializeToString())
    return path


def operations(model: Any, kind: str) -> list[Any]:
    function = model.mlProgram.functions["main"]
    return [item for item in function.block_specializations[function.opset].operations if item.type == kind]


def swap_operands(model: Any) -> None:
    inputs = operations(model, "sub")[0].inputs
    first, second = inputs["x"].arguments[0].name, inputs["y"].arguments[0].name
    inputs["x"].arguments[0].name, inputs["y"].arguments[0].name = second, first


def stored(model: Any, part: str) -> Any:
    (found,) = [item for item in operations(model, "const") if part in item.outputs[0].name]
    return found.attributes["val"].blobFileValue


def swap_weights(model: Any) -> None:
    one, other = stored(model, "layers_0_key_weight"), stored(model, "layers_0_value_weight")
    one.offset, other.offset = other.offset, one.offset


@pytest.mark.parametrize("change", [swap_operands, swap_weights])
def test_a_changed_program_answers_differently(change: Change, single: Path, tmp_path: Path) -> None:
    assert largest_difference(steps(changed(single, tmp_path, change)), torch_steps()) > 0.1


def test_flipped_weight_bits_answer_differently(single: Path, tmp_path: Path) -> None:
    def find(model: Any) -> None:
        offsets.append(stored(model, "layers_1_down_weight").offset + 64)

    offsets: list[int] = []
    path = changed(single, tmp_path, find)
    data = bytearray((path / WEIGHTS).read_bytes())
    for position in range(offsets[0], offsets[0] + 256):
        data[position] ^= 0x05
    (path / WEIGHTS).write_bytes(data)
    assert not largest_difference(steps(path), torch_steps()) < 0.1


def shift_offset(model: Any) -> None:
    stored(model, "layers_0_key_weight").offset += 64


def wrong_element(model: Any) -> None:
    for item in operations(model, "const"):
        if "layers_0_key_weight" in item.outputs[0].name:
            item.attributes["val"].type.tensorType.dataType = coremltools.proto.MIL_pb2.INT32


def unknown_operation(model: Any) -> None:
    operations(model, "sigmoid")[0].type = "sigmoids"


def undeclared_value(model: Any) -> None:
    operations(model, "sigmoid")[0].inputs["x"].arguments[0].name = "nothing"


def wrong_shape(model: Any) -> None:
    operations(model, "sigmoid")[0].outputs[0].type.tensorType.dimensions[1].constant.size = 8


def wrong_type(model: Any) -> None:
    operations(model, "sigmoid")[0].outputs[0].type.tensorType.dataType = coremltools.proto.MIL_pb2.INT32


def wrong_axis(model: Any) -> None:
    operations(model, "concat")[0].inputs["axis"].arguments[0].name = "tokens"


def two_values_for_one(model: Any) -> None:
    arguments = operations(model, "sigmoid")[0].inputs["x"].arguments
    arguments.add().name = arguments[0].name


def declared_twice(model: Any) -> None:
    first, second = operations(model, "expand_dims")[:2]
    second.outputs[0].name = first.outputs[0].name


def nested_block(model: Any) -> None:
    operations(model, "sigmoid")[0].blocks.add()


def flexible(model: Any) -> None:
    model.mlProgram.functions["main"].inputs[0].type.tensorType.dimensions[0].unknown.variadic = False


def odd_element(model: Any) -> None:
    operations(model, "sigmoid")[0].outputs[0].type.tensorType.dataType = 77


def text_result(model: Any) -> None:
    operations(model, "sigmoid")[0].outputs[0].type.tensorType.dataType = coremltools.proto.MIL_pb2.STRING


def inline_value(model: Any, kind: str) -> Any:
    """The first constant that holds a scalar of this field in the model file."""
    values = [item.attributes["val"] for item in operations(model, "const")]
    return next(value for value in values if value.immediateValue.tensor.WhichOneof("value") == kind)


def stored_text(model: Any) -> None:
    for item in operations(model, "const"):
        if item.attributes["val"].WhichOneof("value") == "blobFileValue":
            item.attributes["val"].type.tensorType.dataType = coremltools.proto.MIL_pb2.STRING


def too_many_values(model: Any) -> None:
    inline_value(model, "ints").immediateValue.tensor.ints.values.append(1)


def too_large_value(model: Any) -> None:
    value = inline_value(model, "ints")
    value.type.tensorType.dataType = coremltools.proto.MIL_pb2.INT8
    value.immediateValue.tensor.ints.values[0] = 1000


def wrong_rank(model: Any) -> None:
    operations(model, "sigmoid")[0].outputs[0].type.tensorType.rank = 3


def compressed_variable(model: Any) -> None:
    operations(model, "sigmoid")[0].type = "constexpr_cast"


def no_block(model: Any) -> None:
    model.mlProgram.functions["main"].opset = "CoreML99"


def renamed_output(model: Any) -> None:
    model.description.output[0].name = "answers"


def described_shape(model: Any) -> None:
    model.description.input[0].type.multiArrayType.shape[0] = 2


def other_kind(model: Any) -> None:
    model.identity.SetInParent()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (shift_offset, "weight.bin has no record at offset"),
        (wrong_element, "weight.bin holds element code 2"),
        (unknown_operation, r"operation sigmoids \(.*\) is unknown"),
        (undeclared_value, "nothing is used by operation sigmoid"),
        (wrong_shape, r"sigmoid.*float32\[1, 16\], declared float32\[1, 8\]"),
        (wrong_type, "sigmoid.*computes float32, declared int32"),
        (wrong_axis, "concat"),
        (two_values_for_one, "sigmoid.*2 values"),
        (declared_twice, "is declared twice"),
        (nested_block, "sigmoid.*control flow"),
        (flexible, "tokens has a flexible dimension"),
        (odd_element, "element type 77"),
        (wrong_rank, "has rank 3 but 2 dimensions"),
        (compressed_variable, "constexpr_cast .* takes one constant for x"),
        (text_result, "element type STRING"),
        (stored_text, "element type STRING"),
        (too_many_values, "constant .* holds 8 bytes, expected 4"),
        (too_large_value, "constant .* of int8.* out of bounds"),
        (no_block, "no block for its opset 'CoreML99'"),
        (renamed_output, "output answers of function main is absent in the program"),
        (described_shape, r"input tokens .* int32\[1\] in the program, int32\[2\] in the description"),
        (other_kind, "identity model, expected mlProgram"),
    ],
)
def test_a_program_that_does_not_fit_is_refused(change: Change, reason: str, single: Path, tmp_path: Path) -> None:
    path = changed(single, tmp_path, change)
    with pytest.raises(BadArtifact, match=reason):
        steps(path)


def renamed_state(model: Any) -> None:
    model.description.state[0].name = "remembered"


def write_elsewhere(model: Any) -> None:
    operations(model, "write_state")[0].inputs["input"].arguments[0].name = "tokens"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (renamed_state, r"state memory of function main is float16\[2, 16, 16\] in the program, absent"),
        (write_elsewhere, "write_state .* does not write to a state"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change: Change, reason: str, tmp_path: Path) -> None:
    path = changed(mil_models.save_stateful(tmp_path / "model.mlpackage"), tmp_path, change)
    with pytest.raises(BadArtifact, match=reason):
        steps(path)


def test_a_wrong_function_name_is_refused(single: Path) -> None:
    with pytest.raises(BadArtifact, match="no function 'man'") as caught:
        Package(single).function("man")
    assert "did you mean 'main'" in str(caught.value.hint)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        (WEIGHTS, truncate, "weight.bin (has no record|ends)"),
        (WEIGHTS, Path.unlink, "weight.bin is missing"),
        (MODEL, truncate, "is not a Core ML model"),
        (MODEL, Path.unlink, "model.mlmodel is missing"),
        (Path("Manifest.json"), truncate, "does not name the package's model"),
        (Path("Manifest.json"), Path.unlink, "does not name the package's model"),
    ],
)
def test_a_damaged_folder_is_refused(
    file: Path, damage: Callable[[Path], None], reason: str, single: Path, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.mlpackage"
    shutil.copytree(single, path)
    damage(path / file)
    with pytest.raises(BadArtifact, match=reason):
        steps(path)


def test_a_manifest_that_leaves_the_package_is_refused(single: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.mlpackage"
    shutil.copytree(single, path)
    manifest = json.loads((path / "Manifest.json").read_text())
    for item in manifest["itemInfoEntries"].values():
        item["path"] = "../../outside.mlmodel"
    (path / "Manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "outside.mlmodel").write_bytes((single / MODEL).read_bytes())
    with pytest.raises(BadArtifact, match=r"outside\.mlmodel is missing"):
        Package(path)
