"""Graphs that take rows of a table in place of token ids, and give their logits in parts; it runs no graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from runtimes.contract import Array, Artifact
from runtimes.errors import BadArtifact
from runtimes.manifest import Graph


def open_table(artifact: Artifact, graph: Graph) -> Array | None:
    """The table of a graph, (vocab, width), mapped from its file; None where the graph takes token ids."""
    if graph.lookup is None:
        return None
    path, dtype = artifact.folder / graph.lookup.file, np.dtype(graph.input_dtype)
    shape = (artifact.manifest.model.vocab, graph.lookup.width)
    size, wanted = path.stat().st_size, shape[0] * shape[1] * dtype.itemsize
    if size != wanted:
        raise BadArtifact(f"{path} has {size} bytes, {shape[0]} rows of {shape[1]} are {wanted}", hint="export again")
    return np.memmap(path, dtype.newbyteorder("<"), "r", shape=shape)


def fed(graph: Graph, table: Array | None, tokens: Array) -> Array:
    """What the graph's token input takes: the ids, (tokens,), or their rows, (tokens, width), filled up for a mask."""
    if graph.mask:
        tokens = np.pad(tokens, (0, graph.tokens - len(tokens)))
    return (tokens if table is None else table[tokens]).astype(graph.input_dtype)


def masks(graph: Graph, tokens: Array, dtype: str) -> dict[str, Array]:
    """The mask by its input's name, where the graph has one."""
    return {graph.mask: (np.arange(graph.tokens) < len(tokens)).astype(dtype)} if graph.mask else {}


def logits(graph: Graph) -> Sequence[str]:
    """The outputs that have the logits, one after another."""
    return (graph.output, *graph.output_rest)


def joined(graph: Graph, outputs: Mapping[str, Array], vocab: int) -> Array:
    """The logits (1, vocab): all parts, without the padding at the end of the last."""
    if not graph.output_rest and outputs[graph.output].shape[-1] == vocab:
        return outputs[graph.output]
    return np.concatenate([outputs[name] for name in logits(graph)], axis=-1)[..., :vocab]
