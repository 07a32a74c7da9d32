"""How many bytes a decoded token reads, and how fast this machine reads memory; it times no session."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtimes import manifest, threads
from runtimes.contract import Artifact
from runtimes.remote import is_remote
from validation.outcome import Identity, Traffic

if TYPE_CHECKING:
    import onnx

MEGABYTES = 512  # more than most caches
PASSES = 4


def traffic(artifact: Artifact, identity: Identity, cores: int) -> Traffic | None:
    """What a token of an artifact reads, beside the limit; None off this machine's CPU, and for unknown formats.

    cores: how many threads read where RWKV_EXPORT_THREADS leaves that to the runtime
    """
    device = identity.observed.partition(":")[2]
    if identity.evidence != "run" or not device.startswith("cpu") or is_remote(identity.requested):
        return None
    step = next(graph for graph in artifact.manifest.graphs if graph.tokens == 1)
    readable = step.file.endswith(".onnx") and find_spec("onnx") is not None  # which a device need not have
    if not step.coverage and not readable:
        return None
    state = sum(tensor.spec().nbytes for tensor in artifact.manifest.state)
    count = threads.requested() or cores
    return Traffic(bytes_per_token(artifact.folder, step) + state, read_speed(count), count)


def bytes_per_token(folder: Path, step: manifest.Graph) -> int:
    """Bytes of the constants that one token makes a graph read: all but those of lookups, which read a row.

    A delegate reads all it holds; what XNNPACK leaves outside are lookups.
    """
    return step.coverage.weights_inside if step.coverage else _read_by_onnx(folder / step.file)


@cache
def read_speed(count: int, megabytes: int = MEGABYTES) -> float:
    """GB/s of numpy's sum over integers in `count` threads, the fastest of several passes: a lower bound of the limit.

    The sum lets go of the interpreter and is about as fast as the fastest loops in C.
    """
    import psutil

    size = min(megabytes, psutil.virtual_memory().available >> 22)  # at most a quarter of what is free, in MiB
    parts = np.array_split(np.ones(size << 17, np.int64), count)
    best = 0.0
    with ThreadPoolExecutor(count) as pool:
        for _ in range(PASSES):
            before = time.perf_counter()
            total = sum(pool.map(np.sum, parts))
            best = max(best, int(total) * 8 / (time.perf_counter() - before) / 1e9)
    return best


def _read_by_onnx(path: Path) -> int:
    """Of a choice by the number of tokens the exporter puts the form for one token first, into the then_branch."""
    import onnx

    graphs = list(_executed(onnx.load(path, load_external_data=False).graph))
    constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
    nodes = [node for graph in graphs for node in graph.node]
    read = {name for node in nodes if not node.op_type.startswith("Gather") for name in node.input}
    return sum(_nbytes(constants[name]) for name in read & constants.keys())


def _executed(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "then_branch":
                yield from _executed(attribute.g)


def _nbytes(tensor: onnx.TensorProto) -> int:
    import onnx

    external = {entry.key: entry.value for entry in tensor.external_data}
    if "length" in external:
        return int(external["length"])
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return int(math.prod(tensor.dims) * dtype.itemsize)
