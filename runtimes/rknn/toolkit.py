"""RKNN Toolkit 2, driven within its own environment: graphs to .rknn files, and its simulator of what was built.

The simulator runs a graph that was built in the same process; it opens no .rknn file. So a session builds the shipped
one again from its source, and `same` says whether the same file came of it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.contract import Array
from runtimes.errors import BadArtifact, WrongCall
from runtimes.rknn.driver import configured, do, inside, overheard
from runtimes.rknn.quantise import CALIBRATION, quantised

UNSET_BYTES, UNSET_SHARE = 4096, 1e-4
"""Of a file that may differ between two builds of one graph: measured 36 to 1469 bytes, of 0.5 to 5.7 million."""
EDGES = ("InputOperator", "OutputOperator")


@dataclass(frozen=True)
class Built:
    """A graph that the toolkit has built.

    inputs: its names in order
    same:   whether the file is as long as the shipped one and has the same bytes, but for what the toolkit never sets
    units:  where its operators would run, {"NPU": 97, "CPU Exp": 4}, as the compiler says
    """

    rknn: Any
    inputs: tuple[str, ...]
    same: bool
    units: Mapping[str, int]

    def __call__(self, tensors: Mapping[str, Array]) -> list[Array]:
        """The outputs in order; "nchw" only says that nothing be transposed."""
        given = [tensors[name] for name in self.inputs]
        made = self.rknn.inference(inputs=given, data_format=["nchw"] * len(given))
        if made is None:
            raise BadArtifact("the simulator refuses these inputs")
        return list(made)


def check_products(ranks: Mapping[str, Sequence[int]]) -> None:
    """Raise WrongCall for a product of rank 3, given the ranks of every product's operands by its name.

    The toolkit builds a recurrence of such products without a word, and what it then computes is off by as much as the
    state is large; in a whole step, a state of zeros hides that at the first token. With rank 4, or as multiplications
    and sums, the same recurrence is right.
    """
    for name, operands in ranks.items():
        if 3 in operands:
            raise WrongCall(f"RKNN silently miscomputes products of rank 3, and {name} is one: rank 4 is right")


def products(source: Path) -> dict[str, tuple[int, ...]]:
    """The ranks of both operands of every product in an ONNX file, by the name of its output."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(source)).graph
    named = (*graph.input, *graph.value_info, *graph.output)
    known = {port.name: len(port.type.tensor_type.shape.dim) for port in named}
    known |= {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    return {
        node.output[0]: tuple(known[name] for name in node.input) for node in graph.node if node.op_type == "MatMul"
    }


def ports(source: Path) -> dict[str, tuple[int, ...]]:
    """Inputs of an ONNX file with their shapes."""
    import onnx

    graph = onnx.load(source, load_external_data=False).graph
    return {port.name: tuple(axis.dim_value for axis in port.type.tensor_type.shape.dim) for port in graph.input}


def convert(source: Path, made: Path, *, soc: str, checked: bool = True) -> dict[str, int]:
    """Build `source` for `soc`, write `made`, return its units; raises WrongCall where the toolkit refuses it.

    Where CALIBRATION lies beside it, projections are quantised to w8a8.

    checked: False to see what becomes of a graph that `check_products` refuses
    """
    if checked:
        check_products(products(source))
    rknn, units = _built(source, soc=soc)
    _export(rknn, made)
    return units


def simulate(source: Path, shipped: Path, *, soc: str) -> Built:
    """`source` built again, ready to run in the simulator; raises BadArtifact."""
    inputs = tuple(ports(source))
    try:
        rknn, units = _built(source, soc=soc)
        with tempfile.TemporaryDirectory() as scratch:
            again = Path(scratch) / shipped.name
            _export(rknn, again)
            same = alike(again, shipped)
    except WrongCall as error:
        raise BadArtifact(f"{source}: {error.message}", hint="export again") from error
    if rknn.init_runtime():
        raise BadArtifact(f"the simulator does not start for {source}", hint="export again")
    return Built(rknn, inputs, same, units)


def alike(one: Path, other: Path) -> bool:
    """Whether two files differ in padding at most: other weights, or another processor, change most of a file."""
    first, second = (np.frombuffer(path.read_bytes(), np.uint8) for path in (one, other))
    if first.size != second.size:
        return False
    return int(np.count_nonzero(first != second)) <= UNSET_BYTES + UNSET_SHARE * first.size


def _built(source: Path, *, soc: str) -> tuple[Any, dict[str, int]]:
    """The toolkit's object after a build, and its units; what it writes where it stands is thrown away."""
    source = source.resolve()
    recipe = source.with_name(CALIBRATION)

    def build() -> Any:
        if recipe.exists():
            return quantised(source, recipe, soc=soc)
        rknn = configured(soc)
        do("load_onnx", rknn.load_onnx(model=str(source)))
        do("build", rknn.build(do_quantization=False))
        return rknn

    with tempfile.TemporaryDirectory() as scratch, inside(Path(scratch)):
        rknn, said = overheard(build)
    return rknn, units(said)


def units(log: str) -> dict[str, int]:
    """How many operators are for the NPU, and of each kind that is not how many, by the compiler's own table."""
    rows = (line.rpartition("] ")[2].split() for line in log.splitlines() if line.startswith("D RKNN"))
    found: Counter[str] = Counter()
    for row in rows:
        if len(row) > 4 and row[0].isdecimal() and row[3] in ("NPU", "CPU", "GPU") and row[1] not in EDGES:
            found["NPU" if row[3] == "NPU" else f"{row[3]} {row[1]}"] += 1
    return dict(found)


def _export(rknn: Any, made: Path) -> None:
    do("export_rknn", rknn.export_rknn(str(made)))


def main() -> None:
    """`python -m runtimes.rknn.toolkit SOURCE MADE SOC`: convert; units as JSON on stdout, all talk on stderr."""
    source, made, soc = sys.argv[1:]
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        os.write(answer, json.dumps(convert(Path(source), Path(made), soc=soc)).encode())
    except WrongCall as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
