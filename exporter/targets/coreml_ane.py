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

from exporter import graph, keep, mil, ports, resume
from exporter.contract import Job, ModelSpec, Option, Spelling, Target, Written
from exporter.mil import Port, Recipe, identifier
from exporter.passes import mil_activations, mil_keep, mil_pair
from exporter.passes.ane_form import Form, head_parts
from exporter.passes.ane_norm import teach_coremltools
from exporter.passes.mil_compress import SCHEMES, compress, kept
from exporter.passes.mil_mask import MASK, PREFILL, USAGE, masked, taking_a_mask
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
        precisions={
            "fp16": "fp16",
            "int8": "int8",
            "w8a8": "w8a8",
            "lut8": "int8",
            "lut6": "int8",
            "lut4": "int4",
            "fp32": "fp32",
        },
        spelling=Spelling(contract="row", l2_eps=1e-7, block=8),
        options=(
            Option("ios", ("16", "17", "18"), "18", "oldest iOS to support (macOS 13, 14, 15)"),
            Option(mil_pair.STATE, ("explicit", mil_pair.HILO), "explicit", mil_pair.HELP),
            CHUNK,
            PREFILL,
            keep.OPTION,
        ),
        prefill=True,
        also_runs=("coreml:ane", "coreml:gpu", "coreml:cpu", "iphone:ane"),
        calibrated=(mil_activations.PRECISION,),
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
    """Something has to be quantised for some of it to be kept, and activations of 8 bits need iOS 17 and a text.

    State in two parts needs float16, and matrices.
    """
    mil_pair.refuse(spec, precision, options)
    keep.refuse(precision, options, quantised=precision in SCHEMES)
    mil_activations.refuse(spec, precision, options)


def export(job: Job, folder: Path) -> Written:
    """Convert the form of each piece to one function for each number of tokens; write the table beside the packages."""
    job = mil_pair.chosen(job)
    dtype, sizes, pieces = _dtype(job.precision), graph.calls(job.prefill), chosen(job)
    mil_activations.find(job, pieces)
    places = mil.packages(list(sizes), job.options["ios"])
    files = {file: numbered(file, len(pieces)) for file, _ in places.values()}
    for number, piece in enumerate(pieces):
        paths, tables = [folder / parts[number] for parts in files.values()], [folder / TABLE] if number == 0 else []
        if resume.finished([*paths, *tables], job.progress):
            continue
        with graph.loaded(piece, job.progress):
            form, made = _functions(job, pieces, number)
            for path in tables:
                with job.progress(f"writing {TABLE}"):
                    _write_table([piece.get_parameter(name) for name in form.tables], path, dtype)
        for file, path in zip(files, paths, strict=True):
            with job.progress(f"writing {path.name}"), quiet():
                mil.save({name: made[name] for name in made if places[name][0] == file}, path)
        del made
        if len(pieces) > 1:
            resume.note([*paths, *tables])
    lookup = Lookup(TABLE, (folder / TABLE).stat().st_size // (job.spec.vocab * np.dtype(dtype).itemsize))
    logits, *rest = _logits(job.spec)
    state = [tensor for piece in pieces for tensor in _state(job, pieces, piece)]
    graphs = []
    for name, (file, function) in places.items():
        first, *then = files[file]
        made_for = Graph(sizes[name], first, ROW, dtype, logits, function=function, lookup=lookup)
        filled = masked(job, sizes[name])
        mask = MASK if filled else None
        graphs.append(replace(made_for, output_rest=tuple(rest), then=tuple(then), up_to=filled, mask=mask))
    tools = {name: version(name) for name in ("torch", "coremltools")}
    swift = SWIFT.format(type=dtype, bytes=np.dtype(dtype).itemsize)
    usage = {"Step it in Swift": swift, **mil_pair.usage(job)}
    if len(pieces) > 1:
        usage["Several packages"] = SEVERAL
    if any(graph.mask for graph in graphs):
        usage["Prompts of any length"] = USAGE
    precision = _precision(job)
    precision = replace(precision, kept=(*keep.kept(job.options, "float16"), *precision.kept))
    return Written(tuple(graphs), tuple(state), precision, tools, usage)


def _dtype(precision: str) -> str:
    """Of the table, of the state and of what is handed between packages."""
    return "float32" if precision == "fp32" else "float16"


def _functions(job: Job, pieces: Sequence[Piece], number: int) -> tuple[Form, dict[str, Any]]:
    """A piece's form, and its functions by name."""
    state, made = _state(job, pieces, pieces[number]), {}
    part = f", piece {number + 1}" if len(pieces) > 1 else ""
    for name, size in graph.calls(job.prefill).items():
        with job.progress(f"converting {name} to an ML Program{part}"), quiet():
            form = _form(job, pieces, number, size)
            made[name] = _converted(job, pieces[number], form, _hidden(job, pieces, number, size), state)
    return form, made


def _state(job: Job, pieces: Sequence[Piece], piece: Piece) -> Sequence[StateTensor]:
    part = range(piece.start, piece.stop) if len(pieces) > 1 else None
    return ports.stacked(job.spec, dtype=_dtype(job.precision), rename=identifier, part=part).state


def _form(job: Job, pieces: Sequence[Piece], number: int, size: int) -> Form:
    """Raises WrongCall for a piece after the first that looks something up."""
    piece = pieces[number]
    tokens, *state = graph.arguments(job.spec, size)
    own = state[piece.start * piece.state_per_block : piece.stop * piece.state_per_block]
    taken, _ = _hidden(job, pieces, number, size)
    with taking_a_mask(piece, wanted=masked(job, size)):
        program = graph.trace(piece, (tokens, *(port.example() for port in taken), *own))
    form = Form(program, len(piece.blocks), len(own), least=0.0 if job.precision == "fp32" else NORMAL)
    if number and form.tables:
        raise WrongCall(
            f"RWKV-{job.spec.version} looks up tables in every layer, and only the first of several packages has one",
            hint="add -O chunk=none",
        )
    return form


def _hidden(job: Job, pieces: Sequence[Piece], number: int, size: int) -> tuple[list[Port], list[Port]]:
    """What a piece takes from those before it, after the mask if there is one, and what it gives to those after it."""
    between = partial(Port, shape=(size, job.spec.width), dtype=_dtype(job.precision))
    taken = [Port(MASK, (size,), _dtype(job.precision))] if masked(job, size) else []
    if number > 0:
        taken.append(between(f"hidden_{number}"))
    given = [between(f"hidden_{number + 1}")] if number + 1 < len(pieces) else []
    if pieces[number].handed:
        (taken if number else given).append(between("first"))
    return taken, given


def _recipe(job: Job, piece: Piece) -> Recipe:
    ios, scheme = job.options["ios"], SCHEMES.get(job.precision)
    choose = partial(mil_keep.without, kept=mil_keep.held(job.options, piece))
    if scheme is None:
        return Recipe(ios, half=job.precision != "fp32")
    shrink = partial(compress, scheme=scheme, ios=ios, choose=choose)
    return Recipe(ios, half=True, compress=mil_activations.compressing(shrink, piece))


def _converted(
    job: Job, piece: Piece, form: Form, hidden: tuple[list[Port], list[Port]], state: Sequence[StateTensor]
) -> Any:
    """One function."""
    taken, given = hidden
    dtype = state[0].dtype
    row = [Port(ROW, (form.tokens, sum(form.widths)), dtype)] if form.tables else []
    names = _logits(job.spec) if form.part_sizes else []
    logits = [Port(name, (1, part), dtype) for name, part in zip(names, form.part_sizes, strict=True)]
    into = [Port(tensor.input, tensor.shape, dtype) for tensor in state]
    out = [Port(tensor.output, tensor.shape, dtype) for tensor in state]
    teach_coremltools()
    return mil.converted(form, [*row, *taken, *into], [*given, *logits, *out], _recipe(job, piece))


def _logits(spec: ModelSpec) -> list[str]:
    """Names of the outputs with logits."""
    count, _ = head_parts(spec.vocab)
    return ["logits"] if count == 1 else [f"logits_{part}" for part in range(count)]


def _write_table(tables: Sequence[Tensor], path: Path, dtype: str) -> None:
    """The rows of all tables of a token side by side, little-endian."""
    with path.open("wb") as stream:
        for start in range(0, tables[0].shape[0], ROWS):
            rows = torch.cat([table[start : start + ROWS] for table in tables], 1)
            stream.write(rows.numpy().astype(np.dtype(dtype).newbyteorder("<")).tobytes())


def _precision(job: Job) -> Precision:
    name = job.precision
    if name == "fp32":
        return Precision("float32", "float32")
    if not (scheme := SCHEMES.get(name)):
        return Precision("float16", "float16")
    table = Kept(TABLE, "float16", "it is looked up outside the program, a row a token")
    others = (entry for entry in kept(scheme, job.model, wide="float16") if not entry.tensors.startswith("embedding"))
    own = mil_activations.KEPT if name == mil_activations.PRECISION else ()
    return Precision(name, "float16", (table, *own, *others))


SWIFT = """Add `model.mlpackage` to the Xcode project and `embedding.bin` to its resources. The model takes no token
ids: it takes their rows of the table, and gives the logits in one or more parts.

```swift
let configuration = MLModelConfiguration()
configuration.computeUnits = .cpuAndNeuralEngine
let model = try MLModel(contentsOf: compiledURL, configuration: configuration)
let table = try Data(contentsOf: tableURL, options: .alwaysMapped)          // vocab rows of the same length
let row = try MLMultiArray(shape: [1, width as NSNumber], dataType: .{type})   // width: graphs[].lookup in the manifest
table.withUnsafeBytes {{ bytes in
    row.dataPointer.copyMemory(from: bytes.baseAddress! + token * width * {bytes}, byteCount: width * {bytes})
}}
inputs["row"] = MLFeatureValue(multiArray: row)          // beside every state tensor, filled as listed below
let out = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: inputs))
// logits: the outputs named in the table above, one after another; what follows the vocabulary is padding
for name in stateNames {{ inputs[name] = out.featureValue(for: name + "_next")! }}   // hand arrays over, copy nothing
```

A prefill function takes the rows of its tokens at once, `[tokens, width]`; choose it with
`configuration.functionName`."""

SEVERAL = """The step is cut between layers, because one package would be too large. Open all packages of a row above,
and call them in turn: the first takes the rows of the table and the last gives the logits, the outputs `hidden_...`
and `first` of one are inputs of those after it, by name, and each has the state of its own layers."""
