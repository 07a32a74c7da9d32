"""Quantises an ONNX step by ONNX Runtime's own quantiser, calibrated on text with the state carried; QDQ, as QNN reads.

16-bit activations between the least and the largest value seen, 8- or 4-bit weights. It rounds nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from exporter.ports import Ports
from exporter.progress import Advance, Progress
from exporter.quiet import quiet
from runtimes.contract import Array
from runtimes.errors import WrongCall
from runtimes.qnn import muted

PRODUCTS = ("Gemm", "MatMul")
SETTINGS = {"MatMulConstBOnly": True, "WeightSymmetric": True, "ActivationSymmetric": False}
PER_OUTPUT = {"QDQOpTypePerChannelSupportToAxis": {"MatMul": 1}}


def projections(
    source: Path,
    made: Path,
    named: Ports,
    tokens: Sequence[int],
    progress: Progress,
    *,
    bits: int,
    wide: Callable[[str], bool] = lambda name: False,
) -> None:
    """Write `source` to `made` with products with constant matrices quantised, a scale for each output, and no more.

    tokens: what is read to find ranges, as many at a time as the graph takes
    wide:   whether the matrix of that name stays as it is
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    graph = onnx.load(source).graph
    constants = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in PRODUCTS]
    left = [node.name for node in products if node.input[1] not in constants or wide(node.input[1])]
    with progress("calibrating", len(tokens)) as advance, quiet(), muted():
        quantize_static(
            source,
            made,
            _reader(source, named, tokens, advance),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            nodes_to_exclude=left,
            per_channel=True,
            activation_type=QuantType.QUInt16,
            weight_type=QuantType.QInt8 if bits == 8 else QuantType.QInt4,
            extra_options={**SETTINGS, **PER_OUTPUT},
        )


def everything(source: Path, made: Path, named: Ports, tokens: Sequence[int], progress: Progress) -> None:
    """Write `source` to `made` with every operation quantised, 8-bit weights with one scale a tensor.

    The weights are unsigned: QNN leaves a layer norm whose weights are signed to the CPU.
    """
    from onnxruntime.quantization import QuantType, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    with progress("calibrating", len(tokens)) as advance, quiet(), muted():
        config = get_qnn_qdq_config(
            source,
            _reader(source, named, tokens, advance),
            activation_type=QuantType.QUInt16,
            weight_type=QuantType.QUInt8,
            weight_symmetric=True,
        )
        quantize(source, made, config)


def _reader(source: Path, named: Ports, tokens: Sequence[int], advance: Advance) -> Any:
    """The quantiser's reader of inputs: the text, and beside each piece of it the state that it leads to."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader

    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    ids, *state = (tensor.numpy() for tensor in named.arguments(session.get_inputs()[0].shape[0]))
    size, names = len(ids), named.inputs()
    if len(tokens) < size:
        raise WrongCall(
            f"a text of {len(tokens)} tokens is too short to calibrate {size} at a time", hint="a longer text"
        )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.at, self.state = 0, state

        def get_next(self) -> Mapping[str, Array] | None:
            piece = tokens[self.at : self.at + size]
            if len(piece) < size:
                return None
            feed = dict(zip(names, [np.asarray(piece, ids.dtype), *self.state], strict=True))
            _, *self.state = session.run(named.outputs(), feed)
            self.at += size
            advance(size)
            return feed

    return Reader()
