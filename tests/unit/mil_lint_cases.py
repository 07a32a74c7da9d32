"""For every rule of the lint a program of a few operations that it fires on, and one like it that it does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from coremltools_quiet import Builder as mb
from coremltools_quiet import Function, coremltools, types

from exporter.quiet import quiet

with quiet():
    from coremltools.converters.mil.mil import Program

Body = Callable[[Any], Any]
HALF, SINGLE, INT = types.fp16, types.fp32, types.int32


@dataclass(frozen=True)
class Given:
    """A program: its body takes `x` of this shape and type; `states` are kept tensors by name."""

    body: Body
    shape: tuple[int, ...] = (1, 32, 1, 32)
    dtype: Any = HALF
    states: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """`wrong` fires the rule `times` times, `right` never."""

    wrong: Given
    right: Given
    times: int = 1


def save(given: Given, folder: Path) -> Path:
    """The package, its operations as they are written here: no pass of the converter runs."""
    inputs = {"x": mb.placeholder(given.shape, given.dtype)}
    inputs |= {name: mb.state_tensor_placeholder(shape, HALF) for name, shape in given.states.items()}
    with quiet():
        program = Program()
        with Function(inputs, opset_version=coremltools.target.iOS18) as function:
            made = given.body(*function.inputs.values()) if given.states else given.body(function.inputs["x"])
            function.set_outputs(list(made) if isinstance(made, tuple | list) else [made])
        program.add_function("main", function)
        package = coremltools.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS18,
            pass_pipeline=coremltools.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        package.save(str(folder))
    return folder


def halves(*shape: int) -> np.ndarray:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float16).reshape(shape)


def relu(x: Any) -> Any:
    return mb.relu(x=x)


def kept(x: Any, *states: Any) -> Any:
    for state in states:
        mb.coreml_update_state(state=state, value=mb.add(x=mb.read_state(input=state), y=np.float16(1)))
    return mb.relu(x=x)


def convolved(channels: int) -> Body:
    return lambda x: mb.conv(x=x, weight=np.zeros((channels, 4, 1, 1), np.float16))


def reshaped(*shape: int) -> Body:
    return lambda x: mb.reshape(x=mb.relu(x=mb.reshape(x=x, shape=shape)), shape=(1, 32, 1, 32))


def counted(times: int) -> Body:
    def body(x: Any) -> Any:
        loops = mb.while_loop(
            _cond=lambda index, _: mb.less(x=index, y=times),
            _body=lambda index, value: (mb.add(x=index, y=1), mb.relu(x=value)),
            loop_vars=(np.int32(0), x),
        )
        return loops[1]

    return body


def blocks(*scales: int) -> Body:
    """A weight of (32, 32, 1, 1) in int8 with as many scales along its first two axes."""

    def body(x: Any) -> Any:
        data, scale = np.ones((32, 32, 1, 1), np.int8), halves(*scales, 1, 1)
        return mb.conv(x=x, weight=mb.constexpr_blockwise_shift_scale(data=data, scale=scale))

    return body


def palettes(*groups: int) -> Body:
    """The same in 4 bits with as many palettes."""

    def body(x: Any) -> Any:
        indices = np.ones((32, 32, 1, 1), types.np_uint4_dtype)
        return mb.conv(x=x, weight=mb.constexpr_lut_to_dense(indices=indices, lut=halves(*groups, 1, 1, 16, 1)))

    return body


def looked_up(dtype: str) -> Body:
    return lambda x: mb.gather(x=halves(64, 32), indices=mb.cast(x=x, dtype=dtype), axis=0)


def added(number: float) -> Body:
    return lambda x: mb.rsqrt(x=mb.add(x=x, y=np.float16(number)), epsilon=np.float16(0.25))


def at_least(number: float) -> Body:
    return lambda x: mb.maximum(x=x, y=np.float16(number))


def normed(epsilon: float) -> Body:
    return lambda x: mb.layer_norm(x=x, axes=[3], epsilon=np.float16(epsilon))


def summed(square: Body) -> Body:
    return lambda x: mb.reduce_sum(x=square(x), axes=[3], keep_dims=True)


def plain_sum(x: Any) -> Any:
    return mb.reduce_sum(x=x, axes=[1], keep_dims=True)


PRODUCT = Given(lambda x: mb.linear(x=x, weight=halves(8, 32)))
CONVOLUTION = Given(lambda x: mb.conv(x=x, weight=halves(32, 32, 1, 1)))
PLAIN = Given(relu)

CASES: tuple[tuple[str, Pair], ...] = (
    ("states", Pair(Given(kept, states={"a": (1, 32), "b": (1, 32)}), Given(kept, states={"a": (1, 32)}), 2)),
    ("state-alignment", Pair(Given(kept, states={"a": (32, 24)}), Given(kept, states={"a": (24, 32)}))),
    ("fp32-compute", Pair(Given(relu, dtype=SINGLE), Given(lambda x: mb.cast(x=x, dtype="fp16"), dtype=SINGLE))),
    ("fp32-io", Pair(Given(relu, dtype=SINGLE), PLAIN, 2)),
    ("io-alignment", Pair(Given(relu, shape=(1, 4, 1, 33)), Given(relu, shape=(1, 4, 1, 64)), 2)),
    ("io-singleton", Pair(Given(relu, shape=(1, 64, 1, 1)), Given(relu, shape=(1, 1, 1, 64)), 2)),
    ("rank-five", Pair(Given(reshaped(1, 2, 16, 1, 32)), Given(reshaped(2, 16, 1, 32)), 2)),
    ("linear", Pair(PRODUCT, CONVOLUTION)),
    (
        "linear",
        Pair(
            Given(lambda x: mb.matmul(x=x, y=halves(32, 8))), Given(lambda x: mb.matmul(x=x, y=x), shape=(1, 1, 32, 32))
        ),
    ),
    (
        "outer-product",
        Pair(
            Given(lambda x: mb.matmul(x=x, y=x, transpose_x=True), shape=(1, 1, 1, 32)),
            Given(lambda x: mb.matmul(x=x, y=x, transpose_y=True), shape=(1, 1, 1, 32)),
        ),
    ),
    (
        "product-limit",
        Pair(Given(convolved(65_537), shape=(1, 4, 1, 32)), Given(convolved(65_536), shape=(1, 4, 1, 32))),
    ),
    ("dimension", Pair(Given(convolved(16_385), shape=(1, 4, 1, 1)), Given(convolved(16_384), shape=(1, 4, 1, 1)))),
    ("dimension", Pair(Given(relu, shape=(1, 16_416)), Given(relu, shape=(1, 16_384)))),
    ("integer-compute", Pair(Given(lambda x: mb.cast(x=mb.greater(x=x, y=x), dtype="fp16")), PLAIN)),
    ("integer-compute", Pair(Given(lambda x: mb.add(x=x, y=1), dtype=INT), Given(relu, dtype=HALF))),
    ("indexing", Pair(Given(looked_up("int32"), shape=(4,), dtype=INT), PLAIN)),
    ("indexing", Pair(Given(lambda x: mb.cumsum(x=x, axis=3)), Given(plain_sum))),
    ("control-flow", Pair(Given(counted(3)), PLAIN)),
    ("block-scales", Pair(Given(blocks(32, 4)), Given(blocks(32, 1)))),
    ("block-scales", Pair(Given(palettes(4, 2)), Given(palettes(4, 1)))),
    ("small-epsilon", Pair(Given(added(6e-5)), Given(added(6.2e-5)))),
    ("small-epsilon", Pair(Given(normed(1e-5)), Given(normed(1e-4)))),
    ("small-epsilon", Pair(Given(at_least(1e-6)), Given(at_least(0.0)))),
    ("small-epsilon", Pair(Given(lambda x: mb.rsqrt(x=x, epsilon=np.float16(1e-12))), PLAIN)),
    (
        "square-overflow",
        Pair(Given(summed(lambda x: mb.mul(x=x, y=x))), Given(summed(lambda x: mb.mul(x=x, y=mb.relu(x=x))))),
    ),
    ("square-overflow", Pair(Given(summed(lambda x: mb.square(x=x))), Given(lambda x: mb.square(x=x)))),
    ("square-overflow", Pair(Given(summed(lambda x: mb.pow(x=x, y=np.float16(2)))), Given(plain_sum))),
    (
        "square-overflow",
        Pair(Given(lambda x: mb.reduce_l2_norm(x=x, axes=[3])), Given(lambda x: mb.reduce_max(x=x, axes=[3]))),
    ),
    ("tile", Pair(Given(lambda x: mb.tile(x=x, reps=[1, 2, 1, 1])), Given(lambda x: mb.concat(values=[x, x], axis=1)))),
    (
        "int16-gather",
        Pair(Given(looked_up("int16"), shape=(4,), dtype=INT), Given(looked_up("int32"), shape=(4,), dtype=INT)),
    ),
    ("wide-range", Pair(Given(lambda x: mb.exp(x=x)), Given(lambda x: mb.sigmoid(x=x)))),
)
"""The other rules are tested apart: size takes no operations, and coremltools writes neither of the other two."""
