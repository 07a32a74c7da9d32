"""Compressed weights: every scheme coremltools can write expands to the same bits as in coremltools itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools_quiet import Builder, coremltools, types

from exporter.quiet import quiet
from runtimes.errors import BadArtifact
from runtimes.mil.package import Package
from runtimes.mil.program import Constant, Expanded, Inline, Stored
from runtimes.mil.table import CONSTEXPR
from runtimes.mil.types import TensorType
from runtimes.mil.weights import Weights

Compress = Callable[[Any], Any]

with quiet():
    from coremltools.converters.mil.frontend.milproto.load import load as load_program
    from coremltools.optimize import coreml as optimize


def configured(config: Any) -> Any:
    return optimize.OptimizationConfig(global_config=config)


def linear(**options: Any) -> Compress:
    config = configured(optimize.OpLinearQuantizerConfig(weight_threshold=0, **options))
    return lambda model: optimize.linear_quantize_weights(model, config)


def linear_joint(**options: Any) -> Compress:
    config = configured(optimize.OpLinearQuantizerConfig(weight_threshold=0, **options))
    return lambda model: optimize.linear_quantize_weights(pruned(model), config, joint_compression=True)


def palette(**options: Any) -> Compress:
    config = configured(optimize.OpPalettizerConfig(weight_threshold=0, **options))
    return lambda model: optimize.palettize_weights(model, config)


def palette_joint(**options: Any) -> Compress:
    config = configured(optimize.OpPalettizerConfig(weight_threshold=0, **options))
    return lambda model: optimize.palettize_weights(pruned(model), config, joint_compression=True)


def pruned(model: Any) -> Any:
    config = configured(optimize.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0))
    return optimize.prune_weights(model, config)


BLOCKS = "constexpr_blockwise_shift_scale"
TABLE = "constexpr_lut_to_dense"
SPARSE = "constexpr_sparse_to_dense"

SCHEMES = {
    "int8 channels": ("iOS18", linear(mode="linear_symmetric", dtype="int8"), {BLOCKS}),
    "uint8 channels, shifted": ("iOS18", linear(mode="linear", dtype="uint8"), {BLOCKS}),
    "int4 channels": ("iOS18", linear(mode="linear_symmetric", dtype="int4"), {BLOCKS}),
    "int4 blocks": (
        "iOS18",
        linear(mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=32),
        {BLOCKS},
    ),
    "uint4 blocks, shifted": (
        "iOS18",
        linear(mode="linear", dtype="uint4", granularity="per_block", block_size=16),
        {BLOCKS},
    ),
    "table of 8 bits": ("iOS18", palette(mode="uniform", nbits=8), {TABLE}),
    "table of 6 bits": ("iOS18", palette(mode="uniform", nbits=6), {TABLE}),
    "table of 4 bits": ("iOS18", palette(mode="uniform", nbits=4), {TABLE}),
    "table of 3 bits": ("iOS18", palette(mode="uniform", nbits=3), {TABLE}),
    "tables of 4 bits per group": (
        "iOS18",
        palette(mode="uniform", nbits=4, granularity="per_grouped_channel", group_size=16),
        {TABLE},
    ),
    "table of 2 bits, scaled": (
        "iOS18",
        palette(mode="kmeans", nbits=2, granularity="per_grouped_channel", enable_per_channel_scale=True),
        {TABLE, BLOCKS},
    ),
    "table of vectors": ("iOS18", palette(mode="kmeans", nbits=2, cluster_dim=2), {TABLE}),
    "sparse": ("iOS18", pruned, {SPARSE}),
    "sparse int8": (
        "iOS18",
        linear_joint(mode="linear", dtype="int8"),
        {SPARSE, "constexpr_sparse_blockwise_shift_scale"},
    ),
    "sparse table": ("iOS18", palette_joint(mode="uniform", nbits=4), {SPARSE, "constexpr_lut_to_sparse"}),
    "iOS 16 int8": ("iOS16", linear(mode="linear", dtype="int8"), {"constexpr_affine_dequantize"}),
    "iOS 16 table of 6 bits": ("iOS16", palette(mode="uniform", nbits=6), {TABLE}),
    "iOS 16 table of 4 bits": ("iOS16", palette(mode="uniform", nbits=4), {TABLE}),
    "iOS 16 sparse": ("iOS16", pruned, {SPARSE}),
}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Three linear layers, converted for both generations of compressed weights."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Linear(96, 64), torch.nn.Linear(64, 32)).eval()
    with quiet():
        traced = torch.jit.trace(layers, torch.zeros(1, 64))
        return {
            target: coremltools.convert(
                traced,
                inputs=[coremltools.TensorType("x", (1, 64))],
                minimum_deployment_target=getattr(coremltools.target, target),
                skip_model_load=True,
            )
            for target in ("iOS16", "iOS18")
        }


def linear_weights(folder: Path) -> list[np.ndarray]:
    """Weights of linear operations as coremltools reads them back from disk."""
    model = coremltools.models.MLModel(str(folder), skip_model_load=True)
    program = load_program(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)
    return [materialised(operation.weight) for operation in program.functions["main"].find_ops(op_type="linear")]


def materialised(variable: Any) -> np.ndarray:
    """coremltools' value of a constant, also where a table is itself compressed, which it does not follow."""
    operation = variable.op
    if operation.op_type == TABLE and operation.lut.val is None:
        return operation.decompress(operation.indices.val, materialised(operation.lut), None)
    return operation.materialized_val_inference()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_expands_to_the_bits_of_coremltools(scheme: str, models: dict[str, Any], tmp_path: Path) -> None:
    target, compress, kinds = SCHEMES[scheme]
    folder = tmp_path / "model.mlpackage"
    with quiet():
        compress(models[target]).save(str(folder))
        expected = linear_weights(folder)
    package = Package(folder)
    operations = [operation for operation in package.function(None).operations if operation.kind == "linear"]
    constants = [operation.arguments["weight"][0] for operation in operations]
    assert [used(constant) for constant in constants] == [kinds] * 3
    for constant, value in zip(constants, expected, strict=True):
        found = package.weights.array(constant)
        assert found.dtype == value.dtype == np.float16
        np.testing.assert_array_equal(found.view(np.uint16), value.view(np.uint16))
        np.testing.assert_array_equal(package.weights.wide(constant), value.astype(np.float32))


def used(constant: Constant) -> set[str]:
    """Operations a constant is expanded by, those of its arguments included."""
    if not isinstance(constant, Expanded):
        return set()
    return {constant.kind}.union(*(used(argument) for _, argument in constant.arguments))


def test_every_operation_is_used_by_a_scheme() -> None:
    assert set(CONSTEXPR) - set[str]().union(*(kinds for _, _, kinds in SCHEMES.values())) == {"constexpr_cast"}


def test_cast_widens(tmp_path: Path) -> None:
    value = np.array([1.5, 6e-8, 65504], np.float16)
    source = Inline(TensorType("FLOAT16", (3,)), value.tobytes())
    found = expanded(tmp_path, "constexpr_cast", "FLOAT32", source_val=source, output_dtype=text("fp32"))
    np.testing.assert_array_equal(found, value.astype(np.float32))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_vectors_lie_along_the_axis_coremltools_gives_them(axis: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    indices = generator.integers(0, 4, (4, 6)).astype(types.nptype_from_builtin(types.uint2))
    lut = generator.standard_normal((2, 1, 4, 3)).astype(np.float16)
    result = []

    @Builder.program(input_specs=[], opset_version=coremltools.target.iOS18)
    def program() -> Any:
        result.append(Builder.constexpr_lut_to_dense(indices=indices, lut=lut, vector_axis=axis))
        return result[0]

    value = result[0].op.materialized_val_inference()
    found = expanded(
        tmp_path,
        "constexpr_lut_to_dense",
        "FLOAT16",
        value.shape,
        indices=inline("UINT8", indices.astype(np.uint8)),
        lut=inline("FLOAT16", lut),
        vector_axis=inline("INT32", np.int32(axis)),
    )
    np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"scale": np.ones((3, 1), np.float32)}, "cannot reshape"),
        ({"scale": np.ones((4, 1, 1), np.float32)}, "longer|shorter"),
        ({"scale": np.ones((4, 1), np.float32), "zero": np.zeros((4, 1), np.int8)}, "no parameter zero"),
        ({}, "lacks its parameter scale"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, np.ndarray], reason: str, tmp_path: Path) -> None:
    given = {"data": np.zeros((4, 8), np.int8), **arguments}
    constants = {name: inline(value.dtype.name.upper(), value) for name, value in given.items()}
    with pytest.raises(BadArtifact, match=f"constexpr_blockwise_shift_scale.*{reason}"):
        expanded(tmp_path, BLOCKS, "FLOAT32", (4, 8), **constants)


def test_an_unknown_scheme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="constexpr_zip is unknown"):
        expanded(tmp_path, "constexpr_zip", "FLOAT32")


def test_a_weight_file_outside_the_package_is_refused(tmp_path: Path) -> None:
    for name in ("@model_path/../weight.bin", "/etc/passwd", "@model_path//etc/passwd"):
        with pytest.raises(BadArtifact, match="not inside the package"):
            Weights(tmp_path).array(Stored(TensorType("FLOAT32", (3,)), name, 64))


def expanded(folder: Path, kind: str, element: str, shape: tuple[int, ...] = (3,), **arguments: Constant) -> np.ndarray:
    value = Weights(folder).array(Expanded(TensorType(element, shape), kind, tuple(arguments.items()), 0))
    assert isinstance(value, np.ndarray)
    return value


def inline(element: str, value: Any) -> Inline:
    return Inline(TensorType(element, value.shape), value.tobytes())


def text(value: str) -> Inline:
    return Inline(TensorType("STRING", ()), value)
