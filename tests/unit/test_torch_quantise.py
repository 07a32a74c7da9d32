"""Step modules with rounded weights against NumPy's reading of them, and single products in ExecuTorch's runtime."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exporter import bundled, calibration, registry
from exporter.graph import arguments, load_weights
from exporter.model import Model, open_model
from exporter.models import parameters
from exporter.models.layers import Linear, StepModel
from exporter.passes import torch_tables
from exporter.passes.torch_gptq import compensate
from exporter.passes.torch_quantise import CHANNELS, PRESETS, Grid, quantise
from exporter.progress import silent
from exporter.quiet import quiet
from tests.conftest import untraced
from tests.models import VERSIONS, loud, random_checkpoint
from validation.metrics import compare_step

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]

SMALL = {"layers": 1, "width": 64, "head_size": 32, "vocab": 101, "ffn": 160}
SPELLING = registry.targets()["executorch-xnnpack"].spelling
GRIDS = (Grid(8), Grid(4, 32), Grid(4, 96))
LOUDNESS, CENTRES = [0.01, 1.0, 100.0, 1.0, 1.0, 0.0], [0.0, 0.0, 3.0, 50.0, -2.0, 0.0]  # of six tokens, one silent
INPUTS = torch.randn(6, 192, generator=torch.Generator().manual_seed(1)) * torch.tensor(LOUDNESS)[:, None]
INPUTS += torch.tensor(CENTRES)[:, None]
TOKENS = torch.tensor([3, 49, 0, 3, 20, 1])


class Probe(nn.Module):
    """A lookup, and a linear for each of GRIDS."""

    def __init__(self) -> None:
        super().__init__()
        dice = torch.Generator().manual_seed(0)
        self.source = torch.randn(50, 64, generator=dice) * torch.logspace(-2, 2, 64)
        self.matrices = [torch.randn(48, 192, generator=dice) for _ in GRIDS]
        for matrix in self.matrices:
            matrix[3] = 0  # an output that is nothing but its bias
        self.linears = nn.ModuleList(Linear(fixed(matrix.clone()), fixed(torch.ones(48))) for matrix in self.matrices)
        self.table = torch_tables.rounded(self.source)
        for grid, linear in zip(GRIDS, self.linears, strict=True):
            grid.round(linear)

    def forward(self, tokens: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        rows = torch.nn.functional.embedding(tokens, self.table)
        return rows + 0, *(linear(x * 1.0) for linear in self.linears)


def fixed(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


@pytest.fixture(scope="module")
def probe() -> Probe:
    return Probe()


@pytest.fixture(scope="module")
def ran(probe: Probe, tmp_path_factory: pytest.TempPathFactory) -> Sequence[Array]:
    """What XNNPACK makes of INPUTS and TOKENS: looked up rows, then an output for each of GRIDS."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    path = tmp_path_factory.mktemp("probe") / "probe.pte"
    with quiet(), untraced():
        program = torch.export.export(probe.eval(), (TOKENS, INPUTS), strict=False)
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(edge.to_executorch().buffer)
    return [made.numpy() for made in Runtime.get().load_program(path).load_method("forward").execute([TOKENS, INPUTS])]


def stored(linear: nn.Module) -> tuple[Array, Array]:
    """Values (N, K) of a rounded linear, and the scale of each (N, K)."""
    held: Any = linear.weight
    scales = held.scale.float().numpy().repeat(held.shape[1] // held.scale.shape[1], axis=1)
    return held.qdata.numpy(), scales


def rounded_activations(x: Array) -> tuple[Array, Array]:
    """Per token to 8 bits between the least and the largest value, zero included; the values and a step of each."""
    low, high = np.minimum(x.min(1, keepdims=True), 0), np.maximum(x.max(1, keepdims=True), 0)
    steps = (high - low) / np.float32(255)
    steps[steps == 0] = 1
    zero = np.rint(-128 - low / steps)
    return (np.clip(np.rint(x / steps) + zero, -128, 127) - zero) * steps, steps


def disagreement(got: Array, values: Array, scales: Array) -> float:
    """The largest error of a product, in steps of its token's activations."""
    x, steps = rounded_activations(INPUTS.numpy())
    return float((np.abs(got - (x @ (values * scales).T + 1)) / steps).max())


@pytest.mark.parametrize("index", range(len(GRIDS)))
def test_the_runtime_multiplies_with_the_weights_numpy_reads(ran: Sequence[Array], probe: Probe, index: int) -> None:
    values, scales = stored(probe.linears[index])
    assert disagreement(ran[1 + index], values, scales) < 0.01
    wrong = scales.copy()
    wrong[7, :32] *= 1.05
    assert disagreement(ran[1 + index], values, wrong) > 0.1


@pytest.mark.parametrize("index", range(len(GRIDS)))
def test_weights_are_the_nearest_steps_of_their_scales(probe: Probe, index: int) -> None:
    grid, matrix = GRIDS[index], probe.matrices[index].numpy()
    values, scales = stored(probe.linears[index])
    most = 2 ** (grid.bits - 1)
    off = np.abs(values - np.clip(matrix / scales, -most, most - 1))
    assert off.max() < (0.501 if grid.group is None else 0.54)  # torchao divides by groups' scales in bfloat16
    groups = matrix.reshape(48, -1, grid.group or 192)
    largest = np.maximum(np.abs(groups).max(2) / (most - 0.5), 1e-30).repeat(groups.shape[2], axis=1)
    plain = np.clip(np.rint(matrix / largest), -most, most - 1) * largest
    assert np.square(values * scales - matrix).sum() <= 1.001 * np.square(plain - matrix).sum()


def test_rows_are_within_half_a_step_of_the_table(ran: Sequence[Array], probe: Probe) -> None:
    source = probe.source[TOKENS].numpy()
    steps = np.abs(source.reshape(len(TOKENS), -1, torch_tables.GROUP)).max(2).repeat(torch_tables.GROUP, axis=1) / 127
    assert (np.abs(ran[0] - source) <= 0.5 * steps * (1 + 2**-9) + 127 * steps * 2**-11).all()
    assert (ran[0] == probe.table(TOKENS).numpy()).all()


def test_a_table_of_odd_rows_has_a_scale_a_row_and_zeros_stay_zeros() -> None:
    table = torch.arange(-30.0, 31).reshape(1, 61) * torch.tensor([[0.0], [1.0]])
    made = torch_tables.rounded(table)
    assert made.scales.shape == (2, 1)
    rows = made(torch.tensor([0, 1]))
    assert not rows[0].any()
    assert float((rows - table).abs().max()) <= 30 / 127


def test_a_large_table_is_rounded_as_its_parts_are() -> None:
    table = torch.randn(torch_tables.ROWS + 3, 32)
    whole, part = torch_tables.rounded(table), torch_tables.rounded(table[-5:])
    assert torch.equal(whole.values[-5:], part.values)
    assert torch.equal(whole.scales[-5:], part.scales)


def test_nothing_but_a_lookup_takes_a_table() -> None:
    with pytest.raises(TypeError):
        torch.nn.functional.linear(torch.zeros(1, 32), torch_tables.rounded(torch.zeros(3, 32)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inputs", "group", "found"),
    [(768, 128, 128), (192, 128, 96), (672, 128, 96), (224, 128, 32), (40, 128, None), (64, 32, 32), (16, 32, None)],
)
def test_groups_are_multiples_of_32_that_divide_the_inputs(inputs: int, group: int, found: int | None) -> None:
    assert Grid(4, group).fitting(inputs) == (None if found is None else Grid(4, found))
    assert CHANNELS.fitting(inputs) == CHANNELS


def opened(version: str, folder: Path) -> Model:
    path = folder / f"{version}.pth"
    torch.save(random_checkpoint(version, **SMALL, seed=5), path)
    return open_model(path)


def built(model: Model) -> Any:
    return model.build(SPELLING)


@torch.no_grad()
def logits(module: nn.Module, model: Model, tokens: Sequence[int]) -> Array:
    _, *state = arguments(model.spec, 1)
    rows = []
    for token in tokens:
        out, *state = module(torch.tensor([token]), *state)
        rows.append(out[0].numpy())
    return np.stack(rows)


def mean_kl(reference: Array, target: Array) -> float:
    return float(np.mean([compare_step(*pair).kl for pair in zip(reference, target, strict=True)]))


def cost(model: Model, grid: Grid, tokens: Sequence[int]) -> float:
    """Mean KL of the rounded module against the one in float32."""
    plain, rounded = built(model), built(model)
    load_weights(plain, silent)
    quantise(rounded, model.spec, grid, silent)
    return mean_kl(logits(plain, model, tokens), logits(rounded, model, tokens))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_stays_close_and_keeps_no_matrix_in_float(version: str, tmp_path: Path) -> None:
    model = opened(version, tmp_path)
    tokens = np.random.default_rng(2).integers(0, SMALL["vocab"], 16).tolist()
    for name, bound in (("8da8w", 1e-3), ("8da4w", 8e-2)):
        assert cost(model, PRESETS[name], tokens) < bound
    module = built(model)
    kept = quantise(module, model.spec, PRESETS["8da4w"], silent)
    linears = {f"{path}.weight" for path, part in module.named_modules() if isinstance(part, Linear)}
    floats = {name: made for name, made in module.named_parameters() if name not in linears}
    assert all(sum(size > 1 for size in made.shape) < 2 or made.numel() <= 64 for made in floats.values())
    assert {type(made.data).__name__ for name, made in module.named_parameters() if name in linears} == {
        "IntxUnpackedToInt8Tensor"
    }
    eight = {each.tensors for each in kept if each.dtype == "int8"}
    assert {"emb", "head.weight"} <= eight
    assert ("blocks.*.ffn.deep" in eight) == (version == "7a")
    assert [each.dtype for each in kept].count("float32") == 1


def test_8_bits_everywhere_keep_nothing_but_vectors(tmp_path: Path) -> None:
    model = opened("7", tmp_path)
    assert [each.dtype for each in quantise(built(model), model.spec, CHANNELS, silent)] == ["float32"]


def test_matrices_whose_inputs_no_group_divides_have_8_bits_and_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    torch.save(random_checkpoint("4", **{**SMALL, "ffn": 72}, seed=5), path)
    model = open_model(path)
    kept = {each.tensors: each.reason for each in quantise(built(model), model.spec, PRESETS["8da4w"], silent)}
    assert "no multiple of 32" in kept["blocks.*.ffn.value.weight"]
    assert "blocks.*.ffn.key.weight" not in kept


def test_two_matrices_at_most_are_in_memory_as_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When one is read, no more than the other of a feed-forward's pair is left of those before."""
    model = opened("7", tmp_path)
    alive: list[weakref.ref[Tensor]] = []
    read = parameters.value

    def watched(made: nn.Parameter) -> Tensor:
        assert sum(ref() is not None for ref in alive) <= 1
        tensor = read(made)
        if tensor.numel() >= 64 * 64:
            alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr("exporter.passes.torch_quantise.value", watched)
    quantise(built(model), model.spec, CHANNELS, silent)
    assert len(alive) >= 6


def test_a_loud_channel_costs_nothing_once_it_is_evened_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [byte + 1 for byte in bundled.HELDOUT.read_bytes()[:48]]
    quiet_model, loud_model = open_model(bundled.SIBLINGS["4"]), open_model(loud(tmp_path))
    evened = cost(loud_model, CHANNELS, tokens)
    assert evened < 2 * cost(quiet_model, CHANNELS, tokens)
    monkeypatch.setattr("exporter.passes.torch_quantise.factors", lambda key, value: np.ones(len(key), np.float32))
    assert cost(loud_model, CHANNELS, tokens) > 20 * evened


def test_compensated_weights_have_the_smaller_error_on_correlated_inputs() -> None:
    dice = torch.Generator().manual_seed(4)
    x = torch.randn(512, 64, generator=dice) @ torch.randn(64, 64, generator=dice)
    matrix, grid = torch.randn(48, 64, generator=dice), Grid(4, 32)
    plain, minded = Linear(fixed(matrix.clone())), Linear(fixed(matrix.clone()))
    grid.round(plain)
    compensate(minded, 32, (x.T @ x / 512).numpy(), grid.round)
    errors = [np.square(x.numpy() @ (np.multiply(*stored(part)) - matrix.numpy()).T).mean() for part in (plain, minded)]
    assert errors[1] < 0.7 * errors[0]
    values, _ = stored(minded)
    assert (values.min(), values.max()) == (-8, 7)


def test_rounding_by_what_it_costs_on_a_text_costs_less_on_another_part_of_it() -> None:
    model = open_model(bundled.SIBLINGS["4"])
    tokens = [byte + 1 for byte in bundled.HELDOUT.read_bytes()[:160]]
    plain, minded, nearest = built(model), built(model), built(model)
    load_weights(plain, silent)
    passage = [byte + 1 for byte in bundled.HELDOUT.read_bytes()[20_000:21_024]]
    moments = calibration.inputs_of(minded, model.spec, passage, silent)
    quantise(minded, model.spec, PRESETS["8da4w"], silent, moments)
    quantise(nearest, model.spec, PRESETS["8da4w"], silent)
    reference = logits(plain, model, tokens)
    assert mean_kl(reference, logits(minded, model, tokens)) < 0.9 * mean_kl(reference, logits(nearest, model, tokens))


def test_tables_are_what_is_looked_up_and_nothing_else(tmp_path: Path) -> None:
    model = opened("7a", tmp_path)
    module: StepModel = built(model)
    names = {name for name, made in module.named_parameters() if made in torch_tables.looked_up(module, model.spec)}
    assert names == {"emb", "blocks.0.ffn.deep"}
