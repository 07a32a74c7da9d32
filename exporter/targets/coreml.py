"""Core ML for Apple's CPUs and GPUs: an ML Program with explicit state, or with Core ML's own MLState on iOS 18."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from exporter import graph, keep, mil, mobile, ports, resume
from exporter.contract import Job, ModelSpec, Option, Spelling, Target, Written
from exporter.mil import Port, Recipe, identifier
from exporter.models.layers import StepModel
from exporter.passes import mil_activations, mil_keep, mil_mask, mil_mixed, mil_pair
from exporter.passes.mil_compress import SCHEMES, compress, kept
from exporter.passes.mil_mask import MASK, PREFILL, masked, taking_a_mask
from exporter.passes.mil_pieces import CHUNK, Piece, chosen, numbered, whole
from exporter.quiet import quiet
from runtimes.errors import WrongCall
from runtimes.manifest import Graph, Kept, Precision, StateTensor

TARGETS = (
    Target(
        name="coreml",
        summary="Core ML on iPhone, iPad and Mac; runs on Linux through the MIL interpreter",
        runtime="mil",
        device="cpu",
        precisions={
            "fp32": "fp32",
            "fp16": "fp16",
            "mixed": "fp16",
            "int8": "int8",
            "w8a8": "w8a8",
            "lut8": "int8",
            "lut6": "int8",
            "int4": "int4",
            "lut4": "int4",
        },
        spelling=Spelling(l2_eps=1e-7, block=8),
        options=(
            Option("ios", ("16", "17", "18"), "18", "oldest iOS to support (macOS 13, 14, 15)"),
            Option(
                mil_pair.STATE,
                ("explicit", mil_pair.HILO, "mlstate", "mlstate-wkv"),
                "explicit",
                "state as inputs and outputs, or kept by Core ML (iOS 18); mlstate-wkv, with rwkv-mobile's names: its "
                f"matrices only; {mil_pair.HELP}",
            ),
            CHUNK,
            PREFILL,
            Option(
                "names",
                ("own", "rwkv-mobile"),
                "own",
                "rwkv-mobile: the folder that runtime loads, with its names and stacked state",
            ),
            keep.OPTION,
        ),
        prefill=True,
        also_runs=("coreml:cpu", "coreml:gpu", "coreml:ane", "iphone:ane"),
        calibrated=(mil_activations.PRECISION,),
    ),
)


def missing() -> str | None:
    """Everything it needs is a core dependency."""
    return None


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """MLState exists since iOS 18, and in float16 only; so do 4-bit integers; mixed needs a recurrence per head."""
    ios, held, mobiles = int(options["ios"]), options["state"].startswith("mlstate"), options["names"] == "rwkv-mobile"
    if held and ios < 18:
        raise WrongCall(f"MLState needs iOS 18, not {ios}", hint="add -O ios=18, or -O state=explicit")
    if held and precision in ("fp32", "mixed"):
        raise WrongCall(f"MLState is float16 only, not {precision}", hint="add -p fp16, or -O state=explicit")
    if options["state"] == "mlstate-wkv" and not mobiles:
        raise WrongCall("only rwkv-mobile keeps a part of the state in Core ML", hint="add --names rwkv-mobile")
    if held and options["chunk"] not in ("auto", "none") and not mobiles:
        raise WrongCall("Core ML keeps the state of one package only", hint="leave out -O chunk, or -O state=mlstate")
    if precision == "int4" and ios < 18:
        raise WrongCall(f"4-bit integers need iOS 18, not {ios}", hint="add -O ios=18, or -p lut4")
    if precision == "mixed" and not any(len(tensor.shape) == 4 for tensor in spec.state):
        raise WrongCall(
            f"mixed keeps arithmetic per head in float32, and RWKV-{spec.version} has none", hint="use fp16 or fp32"
        )
    keep.refuse(precision, options, quantised=precision in SCHEMES)
    mil_activations.refuse(spec, precision, options)
    if mobiles and keep.names(options):
        raise WrongCall("with rwkv-mobile's names no matrix can be kept", hint="leave out -O keep")
    mil_pair.refuse(spec, precision, options)
    if mobiles and mil_pair.wanted(options):
        raise WrongCall("rwkv-mobile knows no state in two parts", hint="leave out --names, or -O state=hilo")
    if mobiles:
        mobile.refuse(spec, precision, options)


def export(job: Job, folder: Path) -> Written:
    """Convert the step to one function for each number of tokens, a piece of the step at a time."""
    if job.options["names"] == "rwkv-mobile":
        return mobile.export(job, folder, _recipe(job, None), _precision(job))
    job = mil_pair.chosen(job)
    state = ports.own(job.spec, dtype=_state(job.precision), rename=identifier).state
    pieces, sizes = whole(cast(StepModel, job.model), job.spec) if _held(job) else chosen(job), graph.calls(job.prefill)
    mil_activations.find(job, pieces)
    places = mil.packages(list(sizes), job.options["ios"])
    files = {file: numbered(file, len(pieces)) for file, _ in places.values()}
    for number in range(len(pieces)):
        paths = [folder / parts[number] for parts in files.values()]
        if resume.finished(paths, job.progress):
            continue
        made = _functions(job, pieces, number, state)
        for file, path in zip(files, paths, strict=True):
            with job.progress(f"writing {path.name}"), quiet():
                mil.save({name: made[name] for name in made if places[name][0] == file}, path)
        del made
        if len(pieces) > 1:
            resume.note(paths)
    graphs = []
    for name, (file, function) in places.items():
        first, *then = files[file]
        made_for = Graph(sizes[name], first, "tokens", "int32", "logits", function=function, then=tuple(then))
        filled = masked(job, sizes[name])
        graphs.append(replace(made_for, up_to=filled, mask=MASK if filled else None))
    tools = {name: version(name) for name in ("torch", "coremltools")}
    if _held(job):
        state = tuple(replace(tensor, output=tensor.input) for tensor in state)
    precision = _precision(job)
    precision = replace(precision, kept=(*keep.kept(job.options, "float16"), *precision.kept))
    return Written(tuple(graphs), state, precision, tools, _usage(job, state, len(pieces)))


def _functions(job: Job, pieces: Sequence[Piece], number: int, state: Sequence[StateTensor]) -> dict[str, Any]:
    """The functions of one piece, by name; its weights are in memory meanwhile."""
    piece, recipe = pieces[number], _recipe(job, pieces[number])
    with graph.loaded(piece, job.progress):
        made = {}
        for name, size in graph.calls(job.prefill).items():
            part = f", part {number + 1} of {len(pieces)}" if len(pieces) > 1 else ""
            told = job.progress(f"converting {name} to an ML Program{part}")
            with told, quiet(), taking_a_mask(piece, wanted=masked(job, size)):
                made[name] = _convert(job, pieces, number, size, state, recipe)
    return made


def _state(precision: str) -> str:
    """The state's type."""
    return "float32" if precision in ("fp32", "mixed") else "float16"


def _recipe(job: Job, piece: Piece | None) -> Recipe:
    ios = job.options["ios"]
    if scheme := SCHEMES.get(job.precision):
        choose = partial(mil_keep.without, kept=mil_keep.held(job.options, piece) if piece else ())
        shrink = partial(compress, scheme=scheme, ios=ios, choose=choose)
        return Recipe(ios, half=True, compress=mil_activations.compressing(shrink, piece) if piece else shrink)
    return Recipe(ios, half=job.precision != "fp32", wide=mil_mixed.wide if job.precision == "mixed" else None)


def _precision(job: Job) -> Precision:
    name = job.precision
    if name == "fp32":
        return Precision("float32", "float32")
    ids = Kept("token ids", "int32", "indices")
    if scheme := SCHEMES.get(name):
        own = mil_activations.KEPT if name == mil_activations.PRECISION else ()
        return Precision(name, "float16", (ids, *own, *kept(scheme, job.model, wide="float16")))
    return Precision("float16", "float16", (ids, mil_mixed.KEPT) if name == "mixed" else (ids,))


def _convert(
    job: Job, pieces: Sequence[Piece], number: int, size: int, state: Sequence[StateTensor], recipe: Recipe
) -> Any:
    """The function of a piece that takes `size` tokens."""
    piece = pieces[number]
    own = state[piece.start * piece.state_per_block : piece.stop * piece.state_per_block]
    into = [Port(tensor.input, tensor.shape, tensor.dtype) for tensor in own]
    out = [Port(tensor.output, tensor.shape, tensor.dtype) for tensor in own]
    tokens, logits = Port("tokens", (size,), "int32"), Port("logits", (1, job.spec.vocab), state[0].dtype)
    given, taken = [logits], [tokens]
    if masked(job, size):
        taken.append(Port(MASK, (size,), state[0].dtype))
    if _held(job):
        return mil.converted(piece, taken, given, recipe, states=into)
    between = partial(Port, shape=(size, job.spec.width), dtype="float16" if recipe.half else "float32")
    if number + 1 < len(pieces):
        given = [between(f"hidden_{number + 1}")]
    if number > 0:
        taken.append(between(f"hidden_{number}"))
    if piece.handed:
        (taken if number else given).append(between("first"))
    return mil.converted(piece, [*taken, *into], [*given, *out], recipe)


def _held(job: Job) -> bool:
    """Whether Core ML keeps the state."""
    return job.options["state"] == "mlstate"


def _usage(job: Job, state: Sequence[StateTensor], pieces: int) -> Mapping[str, str]:
    usage = {"Step it in Swift": mil.swift(state[0].input, sorted(graph.calls(job.prefill)), held=_held(job))}
    usage |= mil_pair.usage(job)
    if any(masked(job, size) for size in job.prefill):
        usage["Prompts of any length"] = mil_mask.USAGE
    return usage | ({"Several packages": SEVERAL} if pieces > 1 else {})


SEVERAL = """The step is cut between layers, because one package would be too large for a phone. Open all packages of a
row above, and call them in turn with the same tokens: the outputs `hidden_...` and `first` of one are inputs of those
after it, by name, and each has the state of its own layers."""
