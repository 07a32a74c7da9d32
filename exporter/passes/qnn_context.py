"""Compiles ONNX graphs into context binaries for one Hexagon processor, whole or not at all; counts what went in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from exporter.progress import Progress
from runtimes.errors import WrongCall
from runtimes.manifest import Coverage
from runtimes.qnn import provider
from runtimes.qnn.chips import CHIPS

Shapes = Mapping[str, tuple[int, ...]]

OTHERS = "try another precision, or another -O soc=..."


def compiled(files: Sequence[Path], soc: str, progress: Progress) -> dict[str, tuple[str, Coverage]]:
    """For each graph file the name of the context file beside it, and what the processor takes.

    Of several files the weights are in one binary, once. Raises WrongCall where QNN leaves a node to the CPU or fails.
    """
    found, alive = {}, []  # sessions that share a binary write it when the last is made
    for number, file in enumerate(files, start=1):
        made = file.with_name(f"{file.stem}_ctx.onnx")
        entries = {"ep.context_enable": "1", "ep.context_embed_mode": "0", "ep.context_file_path": str(made)}
        if len(files) > 1:
            last = {"ep.stop_share_ep_contexts": "1"} if number == len(files) else {}
            entries |= {"ep.share_ep_contexts": "1"} | last
        with progress(f"compiling {file.stem} for {soc}"):
            alive.append(_session(file, soc, entries))
        found[file.name] = (made.name, _coverage(file, provider.assigned(alive[-1])))
        _require_whole(made, soc)
    return found


def _session(file: Path, soc: str, entries: Mapping[str, str]) -> Any:
    settings = provider.compiling(CHIPS[soc])
    try:
        return provider.session(file, settings, entries)
    except Exception as error:  # onnxruntime raises its own untyped family
        left = _left_outside(file, settings)
        said, _, _ = str(error).partition("\n")
        what = f"leaves to the CPU: {left}" if left else f"cannot compile: {said}"
        raise WrongCall(f"of {file.stem} for {soc}, QNN {what}", hint=OTHERS) from error


def _left_outside(file: Path, settings: Mapping[str, str]) -> str:
    """The operators that a session which may fall back gives to the CPU, as "LayerNormalization 7"; "" for none."""
    try:
        outside = provider.assigned(provider.session(file, settings, {}, strict=False))
    except Exception:  # the same trouble again, which the caller tells
        return ""
    others = [counts for name, counts in outside.items() if name != provider.PROVIDER]
    return ", ".join(f"{name} {count}" for counts in others for name, count in counts.most_common())


def _require_whole(made: Path, soc: str) -> None:
    """A context can be written that covers a part of the graph, with the rest around it as it was."""
    nodes = [node.op_type for node in onnx.load(made, load_external_data=False).graph.node]
    if nodes != ["EPContext"]:
        raise WrongCall(f"for {soc}, QNN compiles a part only; {made.name} has {', '.join(nodes)}", hint=OTHERS)


def _coverage(file: Path, taken: Mapping[str, Mapping[str, int]]) -> Coverage:
    """What a graph has and a session's assignment says of it."""
    model = onnx.shape_inference.infer_shapes(onnx.load(file, load_external_data=False))
    weights = sum(math.prod(tensor.dims) * _bits(tensor.data_type) for tensor in model.graph.initializer)
    return Coverage(
        delegates={provider.PROVIDER: 1},
        inside=dict(sorted(taken[provider.PROVIDER].items())),
        outside={},
        macs_inside=sum(_macs(model.graph)),
        macs_outside=0,
        weights_inside=-(-weights // 8),
        weights_outside=0,
    )


def _bits(kind: int) -> int:
    four = kind in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    return 4 if four else 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize


def _macs(graph: onnx.GraphProto) -> Iterator[int]:
    """Multiply-accumulates of each product: elements of the result times the length of each sum."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for port in (*graph.value_info, *graph.input, *graph.output):
        shapes[port.name] = tuple(size.dim_value for size in port.type.tensor_type.shape.dim)
    for node in graph.node:
        if node.op_type in ("Gemm", "MatMul"):
            yield math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
