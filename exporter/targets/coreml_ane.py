"""Core ML as the Neural Engine wants it: convolutions, stacked state, the embedding outside, the head in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exporter import graph, mil, ports
from exporter.contract import Job, ModelSpec, Option, Spelling, Target, Written
from exporter.mil import Port, Recipe, identifier
from exporter.passes.ane_form import Form
from exporter.passes.ane_norm import teach_coremltools
from exporter.passes.mil_compress import SCHEMES, compress, kept
from exporter.passes.mil_pieces import CHUNK, Piece, chosen, numbered
from exporter.quiet import quiet
from runtimes.errors import WrongCall
from runtimes.manifest import Graph, Kept, Lookup, Precision, StateTensor

TARGETS = (
    Target(
        name="coreml-ane",
        summary="Core ML for the Neural Engine of iPhone, iPad and Mac; runs on Linux through the MIL interpreter",
        runtime="mil",
        device="cpu",
        precisions={"fp16": "fp16", "int8": "int8", "lut8": "int8", "lut6": "int8", "lut4": "int4", "fp32": "fp32"},
        spelling=Spelling(contract="row", l2_eps=1e-7, block=16),
        options=(
            Option("ios", ("16", "17", "18"), "18", "oldest iOS to support (macOS 13, 14, 15)"),
            CHUNK,
        ),
        prefill=True,
        also_runs=("coreml:ane", "coreml:gpu", "coreml:cpu"),
    ),
)

NORMAL = 2.0**-14  # the smallest float16 that keeps all its bits, and that no engine takes for zero
ROW = "row"
TABLE = "embedding.bin"
ROWS = 4096  # of the table that are put together at once


def missing() -> str | None:
    """Everything it needs is a core dependency."""
    return None


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Every combination works."""


def export(job: Job, folder: Path) -> Written:
    """Convert the form of each piece to one function for each number of tokens; write the table beside the packages."""
    dtype, sizes, pieces = _dtype(job.precision), mil.sizes(job.prefill), chosen(job)
    places = mil.packages(list(sizes), job.options["ios"])
    files = {file: numbered(file, len(pieces)) for file, _ in places.values()}
    state: list[StateTensor] = []
    for number, piece in enumerate(pieces):
        with graph.loaded(piece, job.progress):
            form, made, own = _functions(job, pieces, number)
            if number == 0:
                lookup = Lookup(TABLE, sum(form.widths))
                with job.progress(f"writing {TABLE}"):
                    _write_table([piece.get_parameter(name) for name in form.tables], folder / TABLE, dtype)
        for file, parts in files.items():
            with job.progress(f"writing {parts[number]}"), quiet():
                mil.save({name: made[name] for name in made if places[name][0] == file}, folder / parts[number])
        state += own
        del made
    logits, *rest = _logits(form)
    graphs = []
    for name, (file, function) in places.items():
        first, *then = files[file]
        made_for = Graph(sizes[name], first, ROW, dtype, logits, function=function, lookup=lookup)
        graphs.append(replace(made_for, output_rest=tuple(rest), then=tuple(then)))
    tools = {name: version(name) for name in ("torch", "coremltools")}
    return Written(tuple(graphs), tuple(state), _precision(job.precision), tools, {"Step it in Swift": SWIFT})


def _dtype(precision: str) -> str:
    """Of the table, of the state and of what is handed between packages."""
    return "float32" if precision == "fp32" else "float16"


def _functions(job: Job, pieces: Sequence[Piece], number: int) -> tuple[Form, dict[str, Any], Sequence[StateTensor]]:
    """A piece's form, its functions by name, and its state."""
    piece, recipe = pieces[number], _recipe(job)
    part = range(piece.start, piece.stop) if len(pieces) > 1 else None
    state = ports.stacked(job.spec, dtype=_dtype(job.precision), rename=identifier, part=part).state
    made = {}
    for name, size in mil.sizes(job.prefill).items():
        with job.progress(f"converting {name} to an ML Program{f', piece {number + 1}' if part else ''}"), quiet():
            form = _form(job, pieces, number, size)
            made[name] = _converted(form, _hidden(job, pieces, number, size), state, recipe)
    return form, made, state


def _form(job: Job, pieces: Sequence[Piece], number: int, size: int) -> Form:
    """Raises WrongCall for a piece after the first that looks something up."""
    piece = pieces[number]
    tokens, *state = graph.arguments(job.spec, size)
    own = state[piece.start * piece.state_per_block : piece.stop * piece.state_per_block]
    taken, _ = _hidden(job, pieces, number, size)
    program = graph.trace(piece, (tokens, *(port.example() for port in taken), *own))
    form = Form(program, len(piece.blocks), len(own), least=NORMAL if _recipe(job).half else 0.0)
    if number and form.tables:
        raise WrongCall(
            f"RWKV-{job.spec.version} looks up tables in every layer, and only the first of several packages has one",
            hint="add -O chunk=none",
        )
    return form


def _hidden(job: Job, pieces: Sequence[Piece], number: int, size: int) -> tuple[list[Port], list[Port]]:
    """What a piece takes from those before it, and what it gives to those after it."""
    between = partial(Port, shape=(size, job.spec.width), dtype=_dtype(job.precision))
    taken = [between(f"hidden_{number}")] if number > 0 else []
    given = [between(f"hidden_{number + 1}")] if number + 1 < len(pieces) else []
    if pieces[number].handed:
        (taken if number else given).append(between("first"))
    return taken, given


def _recipe(job: Job) -> Recipe:
    ios, scheme = job.options["ios"], SCHEMES.get(job.precision)
    shrink = partial(compress, scheme=scheme, ios=ios) if scheme else None
    return Recipe(ios, half=job.precision != "fp32", compress=shrink)


def _converted(form: Form, hidden: tuple[list[Port], list[Port]], state: Sequence[StateTensor], recipe: Recipe) -> Any:
    """One function."""
    taken, given = hidden
    dtype = state[0].dtype
    row = [Port(ROW, (form.tokens, sum(form.widths)), dtype)] if form.tables else []
    logits = [Port(name, (1, part), dtype) for name, part in zip(_logits(form), form.part_sizes, strict=True)]
    into = [Port(tensor.input, tensor.shape, dtype) for tensor in state]
    out = [Port(tensor.output, tensor.shape, dtype) for tensor in state]
    teach_coremltools()
    return mil.converted(form, [*row, *taken, *into], [*given, *logits, *out], recipe)


def _logits(form: Form) -> list[str]:
    """Names of the outputs with logits."""
    count = len(form.part_sizes)
    return ["logits"] if count == 1 else [f"logits_{part}" for part in range(count)]


def _write_table(tables: Sequence[Tensor], path: Path, dtype: str) -> None:
    """The rows of all tables of a token side by side, little-endian."""
    with path.open("wb") as stream:
        for start in range(0, tables[0].shape[0], ROWS):
            rows = torch.cat([table[start : start + ROWS] for table in tables], 1)
            stream.write(rows.numpy().astype(np.dtype(dtype).newbyteorder("<")).tobytes())


def _precision(name: str) -> Precision:
    if name == "fp32":
        return Precision("float32", "float32")
    if not (scheme := SCHEMES.get(name)):
        return Precision("float16", "float16")
    table = Kept(TABLE, "float16", "it is looked up outside the program, a row a token")
    others = (entry for entry in kept(scheme, wide="float16") if not entry.tensors.startswith("embedding"))
    return Precision(name, "float16", (table, *others))


SWIFT = """Add `model.mlpackage` to the Xcode project and `embedding.bin` to its resources. The model takes no token
ids: it takes their rows of the table, and gives the logits in one or more parts.

```swift
let configuration = MLModelConfiguration()
configuration.computeUnits = .cpuAndNeuralEngine
let model = try MLModel(contentsOf: compiledURL, configuration: configuration)
let table = try Data(contentsOf: tableURL, options: .alwaysMapped)          // vocab rows of the same length
let row = try MLMultiArray(shape: [1, width], dataType: .float16)           // width: graphs[].lookup in manifest.json
table.withUnsafeBytes { bytes in
    row.dataPointer.copyMemory(from: bytes.baseAddress! + token * width * 2, byteCount: width * 2)
}
inputs["row"] = MLFeatureValue(multiArray: row)          // beside every state tensor, filled as listed below
let out = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: inputs))
// logits: the outputs named in the table above, one after another; what follows the vocabulary is padding
for name in stateNames { inputs[name] = out.featureValue(for: name + "_next")! }   // hand arrays over, copy nothing
```

A prefill function takes the rows of its tokens at once, `[tokens, width]`; choose it with
`configuration.functionName`."""
