"""Faults planted in a saved Core ML program, each of which must be found at its layer and operation, by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import localise_cases as cases
import numpy as np
import pytest
from localise_cases import MilProgram

pytestmark = pytest.mark.slow

PLACE = "mil:cpu"


@pytest.fixture(scope="module", autouse=True)
def traced() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        cases.trace_once(patch)
        yield


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float16, where the squares in its last channel mix overflow: no fault has to be planted for that."""
    return cases.exported(tmp_path_factory.mktemp("half"), "coreml", precision="fp16")


def swap_operands(program: MilProgram) -> None:
    inputs = program.operation("sub_2").inputs
    one, other = (inputs[name].arguments[0].name for name in "xy")
    inputs["x"].arguments[0].name, inputs["y"].arguments[0].name = other, one


def take_the_other_shift(program: MilProgram) -> None:
    program.operation("sub_2").inputs["x"].arguments[0].name = "blocks_1_ffn_shift"


def transpose_the_state(program: MilProgram) -> None:
    program.constant("matmul_3", "transpose_x").bools.values[0] = True


def read_past_the_exponential(program: MilProgram) -> None:
    program.read_instead("exp_1", program.operation("exp_1").inputs["x"].arguments[0].name)


def sigmoid_for_exponential(program: MilProgram) -> None:
    program.operation("exp_1").type = "sigmoid"


def mistake_epsilon(program: MilProgram) -> None:
    program.constant("layer_norm_1", "epsilon").bytes.values = np.float16(1e-5).tobytes()


def drop_epsilon(program: MilProgram) -> None:
    program.constant("layer_norm_4", "epsilon").bytes.values = np.float16(0).tobytes()


def flip_bits(program: MilProgram) -> None:
    start = program.stored("blocks_1_att_key_weight").offset + 64  # of its record, which begins with 64 bytes
    cases.flip(program.folder / cases.MLWEIGHTS, start + 128, 16, size=2)


def exchange_weights(program: MilProgram) -> None:
    one, other = (program.stored(f"blocks_1_att_{name}_weight") for name in ("key", "value"))
    one.offset, other.offset = other.offset, one.offset


FAULTS: dict[Callable[[MilProgram], None], tuple[str, str, str, str]] = {
    swap_operands: ("blocks.1", "sub sub_2_cast_fp16", "swapped-operands", "sub_2"),
    take_the_other_shift: ("blocks.1", "sub sub_2_cast_fp16", "wrong-operand", "blocks.1.ffn.shift is taken"),
    transpose_the_state: ("blocks.1", "matmul matmul_3_cast_fp16", "transposed", "blocks.1.att.wkv"),
    read_past_the_exponential: ("blocks.1", "mul mul_35_cast_fp16", "missing-operation", "exp"),
    sigmoid_for_exponential: ("blocks.1", "sigmoid exp_1_cast_fp16", "other-operation", "sigmoid in place of exp"),
    mistake_epsilon: ("blocks.0", "layer_norm layer_norm_1_cast_fp16", "other-epsilon", "in place of 0.00064"),
    drop_epsilon: ("blocks.1", "layer_norm layer_norm_4_cast_fp16", "eps-underflow", "vector of zeros"),
    flip_bits: (
        "blocks.1",
        "linear linear_13_cast_fp16",
        "wrong-weights",
        "16 of 4,096 values differ",
    ),
    exchange_weights: ("blocks.1", "linear linear_13_cast_fp16", "wrong-weights", "value.weight is taken for"),
}


@pytest.mark.parametrize("change", FAULTS, ids=lambda change: change.__name__)
def test_a_planted_fault_is_found_and_named(change: Callable[[MilProgram], None], half: Path) -> None:
    layer, operation, cause, detail = FAULTS[change]
    artifact = cases.changed(half, change.__name__)
    program = MilProgram(artifact)
    change(program)
    program.save()
    found = cases.found(artifact, PLACE)
    assert found.lost
    assert found.first is not None and found.first.cause is not None
    assert (found.first.layer, found.first.op, found.first.cause.name) == (layer, operation, cause), found.sentence
    assert detail in found.first.cause.detail


def test_squares_beyond_float16_are_found_without_planting_anything(half: Path) -> None:
    found = cases.found(half, PLACE)
    assert found.lost
    assert found.first is not None and found.first.cause is not None
    assert (found.first.module, found.first.cause.name) == ("blocks.1.ffn", "square-overflow"), found.sentence
    assert found.first.relative is None
    assert found.first.op == "mul mul_42_cast_fp16"
    before = [layer for layer in found.layers if layer.name in ("embedding", "blocks.0")]
    assert all(layer.worst is not None and layer.worst < 1 for layer in before)
    assert found.seen == found.operations
