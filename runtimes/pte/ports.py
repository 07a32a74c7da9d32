"""The inputs and outputs of an ExecuTorch method, held against what the manifest says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from runtimes.errors import BadArtifact
from runtimes.manifest import Graph, Manifest

TYPES = {3: "int32", 4: "int64", 5: "float16", 6: "float32"}
"""ExecuTorch's numbers of element types."""


class Port(NamedTuple):
    """Element type, as numpy calls it, and size."""

    dtype: str
    nbytes: int


def check(found: Sequence[Port], graph: Graph, manifest: Manifest) -> None:
    """Raises BadArtifact unless a method's ports are the graph's.

    found: the token ids, the logits, then the state tensors in their order
    """
    ids = Port(graph.input_dtype, graph.tokens * np.dtype(graph.input_dtype).itemsize)
    logits = found[1] if found[1].dtype in ("float32", "float16") else Port("float32", 0)
    logits = logits._replace(nbytes=manifest.model.vocab * np.dtype(logits.dtype).itemsize)
    wanted = [ids, logits, *(Port(tensor.dtype, tensor.spec().nbytes) for tensor in manifest.state)]
    if len(found) != len(wanted):
        raise BadArtifact(
            f"{graph.file} takes {len(found) - 2} state tensors, the manifest lists {len(wanted) - 2}",
            hint="export again",
        )
    names = [graph.input, graph.output, *(tensor.name for tensor in manifest.state)]
    for name, one, other in zip(names, wanted, found, strict=True):
        if one != other:
            said = [f"{port.nbytes} bytes of {port.dtype}" for port in (other, one)]
            raise BadArtifact(f"{name} in {graph.file} is {said[0]}, the manifest says {said[1]}", hint="export again")
