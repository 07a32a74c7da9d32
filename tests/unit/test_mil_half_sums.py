"""Products summed in float16: each sum is that of a loop over numbers, and the place that has them says so."""

from __future__ import annotations

import itertools
from pathlib import Path

import mil_models
import numpy as np
import pytest
import torch
from mil_models import TOKENS, ZERO, largest_difference, torch_steps

from exporter import export
from exporter.synth import synth
from runtimes.mil import ops_half_sums, ops_linear
from runtimes.mil.evaluate import Evaluator
from runtimes.mil.package import Package
from validation import validate
from validation.outcome import Outcome

pytestmark = pytest.mark.slow


def halves(*shape: int) -> np.ndarray:
    """Float16 values as float32."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float16).astype(np.float32)


def looped(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(n, K) @ (K, m), number by number."""
    made = np.zeros((len(rows), columns.shape[1]), np.float32)
    for row, column in itertools.product(range(len(rows)), range(columns.shape[1])):
        total = np.float16(0)
        for a, b in zip(rows[row], columns[:, column], strict=True):
            total = np.float16(np.float32(total) + np.float32(a) * np.float32(b))
        made[row, column] = total
    return made


def test_a_linear_is_the_loop() -> None:
    x, weight, bias = halves(2, 3, 24), halves(5, 24), halves(5)
    expected = looped(x.reshape(6, 24), weight.T).reshape(2, 3, 5)
    np.testing.assert_array_equal(ops_half_sums.linear(x, weight), expected)
    np.testing.assert_array_equal(ops_half_sums.linear(x, weight, bias), expected + bias)


@pytest.mark.parametrize(("transpose_x", "transpose_y"), itertools.product([False, True], repeat=2))
def test_a_matmul_is_the_loop_for_every_matrix_of_a_batch(transpose_x: bool, transpose_y: bool) -> None:
    x, y = halves(3, 4, 16), halves(3, 16, 5)
    given = x.mT if transpose_x else x, y.mT if transpose_y else y
    made = ops_half_sums.matmul(*given, transpose_x, transpose_y)
    np.testing.assert_array_equal(made, [looped(one, other) for one, other in zip(x, y, strict=True)])


def test_vectors_multiply_as_in_numpy() -> None:
    vector, matrix = halves(16), halves(16, 5)
    np.testing.assert_array_equal(ops_half_sums.matmul(vector, matrix), looped(vector[None], matrix)[0])
    np.testing.assert_array_equal(ops_half_sums.matmul(matrix.T, vector), looped(matrix.T, vector[:, None])[:, 0])
    for x, y in ((vector, matrix), (matrix.T, vector), (vector, vector), (matrix.T, matrix)):
        assert ops_linear.matmul(x, y).shape == ops_half_sums.matmul(x, y).shape == np.matmul(x, y).shape


def test_a_convolution_is_the_loop_for_every_group() -> None:
    x, weight, bias = halves(1, 6, 1, 4), halves(8, 3, 1, 1), halves(8)
    made = ops_half_sums.conv(x, weight, bias, groups=2)
    groups = zip(np.split(x, 2, 1), np.split(weight, 2), strict=True)
    expected = [looped(some.reshape(3, 4).T, kernel.reshape(4, 3).T).T for some, kernel in groups]
    np.testing.assert_array_equal(made, np.concatenate(expected).reshape(1, 8, 1, 4) + bias.reshape(-1, 1, 1))
    full = torch.conv2d(torch.from_numpy(x), torch.from_numpy(weight), torch.from_numpy(bias), groups=2)
    np.testing.assert_allclose(made, full, atol=3e-2)


def test_ones_add_up_to_2048_and_no_further() -> None:
    """The next float16 after 2048 is 2050, and a tie goes to the even neighbour."""
    ones = np.ones((1, 4096), np.float32)
    assert ops_half_sums.linear(ones, ones).item() == 2048
    assert ops_linear.linear(ones, ones).item() == 4096


def stepped(path: Path, *, half_sums: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    package, memory, results = Package(path), ZERO, []
    evaluator = Evaluator(package.function(None), package.weights, half_sums=half_sums)
    for token in TOKENS:
        outputs, _ = evaluator.run({"tokens": np.array([token], np.int32), "memory_in": memory}, {})
        memory = outputs["memory_out"]
        results.append((outputs["logits"], memory))
    return results


def test_float16_programs_lose_more_and_float32_programs_nothing(tmp_path: Path) -> None:
    half = mil_models.save(tmp_path / "half.mlpackage", precision="fp16")
    single = mil_models.save(tmp_path / "single.mlpackage", precision="fp32")
    wide, narrow = (largest_difference(stepped(half, half_sums=sums), torch_steps()) for sums in (False, True))
    assert wide < narrow < 2e-2
    for one, other in zip(stepped(single, half_sums=True), stepped(single, half_sums=False), strict=True):
        np.testing.assert_array_equal(one[0], other[0])


def test_validate_says_which_sums_it_used(tmp_path: Path) -> None:
    checkpoint = synth("7", layers=1, width=32, head_size=16, vocab=33, out=tmp_path / "tiny.pth")
    (folder,) = export(checkpoint, targets=["coreml"], precision="fp16", out=tmp_path)
    rows = validate([folder], on=["mil:cpu", "mil:cpu-fp16acc"], steps=8).parity
    assert [(row.outcome, row.reasons) for row in rows] == [(Outcome.PASS, ()), (Outcome.PASS, ())]
    assert [row.identity.observed for row in rows] == ["mil:cpu", "mil:cpu-fp16acc"]
    assert {row.identity.evidence for row in rows} == {"interpreted"}
    wide, narrow = (row.local.max_abs for row in rows if row.local)
    assert wide != narrow
