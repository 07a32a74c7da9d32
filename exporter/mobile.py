"""The Core ML folder that rwkv-mobile loads, from a step: names, stacked state, config.yaml; it compiles nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exporter import graph, mil, ports, resume
from exporter.contract import Job, ModelSpec, Written
from exporter.mil import Port, Recipe
from exporter.passes import mil_activations
from exporter.passes.mil_pieces import Piece, chosen
from exporter.quiet import quiet
from runtimes.errors import WrongCall
from runtimes.manifest import Graph, Precision, StateTensor

BASENAME = "model"
MODES = {"explicit": "tensor", "mlstate": "coreml", "mlstate-wkv": "wkv-coreml"}
PREFILL = 16  # tokens, where no size is given: rwkv-mobile does not load a package without this function
TOKENS, OUTPUT = "in0", "out0"
FIRST = "v_first"  # what layer 0 hands to all later layers


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Raise WrongCall for what it cannot load: RWKV-4, other logits than float16, one function a package, a mask."""
    ports.rwkv_mobile(spec)
    if precision == mil_activations.PRECISION:
        raise WrongCall("with rwkv-mobile's names activations stay float16", hint="add -p int8")
    if precision in ("fp32", "mixed"):
        raise WrongCall(f"rwkv-mobile reads float16 logits, which {precision} does not give", hint="add -p fp16")
    if int(options["ios"]) < mil.MULTIFUNCTION:
        raise WrongCall(
            f"rwkv-mobile loads two functions of one package, which need iOS 18, not {options['ios']}",
            hint="add -O ios=18",
        )
    if options["prefill"] != "exact":
        raise WrongCall("rwkv-mobile gives no mask to a function for prompts", hint="leave out -O prefill")


def export(job: Job, folder: Path, recipe: Recipe, precision: Precision) -> Written:
    """Write the packages, each with one prefill function in any case, and config.yaml.

    Raises WrongCall for several sizes, and for several packages of a model that they cannot be handed from one to the
    next.
    """
    if len(job.prefill) > 1:
        raise WrongCall(
            f"rwkv-mobile loads one function for prompts, not {len(job.prefill)}", hint="give one size: --prefill 16"
        )
    sizes, pieces = {graph.STEP: 1, "prefill": (*job.prefill, PREFILL)[0]}, chosen(job)
    _refuse_pieces(job.spec, pieces)
    packages = [f"{BASENAME}_chunk{number}of{len(pieces)}.mlpackage" for number in range(1, len(pieces) + 1)]
    for number, package in enumerate(packages):
        if resume.finished([folder / package], job.progress):
            continue
        made = _functions(job, pieces, number, sizes, recipe)
        with job.progress(f"writing {package}"), quiet():
            mil.save(made, folder / package)
        del made
        if len(pieces) > 1:
            resume.note([folder / package])
    mode, count = MODES[job.options["state"]], len(pieces)
    text = f"basename: {BASENAME}\nnum_chunks: {count}\nstate_mode: {mode}\n"
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    first, *then = packages
    graphs = [Graph(size, first, TOKENS, "int32", OUTPUT, function=name) for name, size in sizes.items()]
    state = [tensor for number in range(count) for tensor in _outside(stacked(job, pieces, number), number, count)]
    tools = {name: version(name) for name in ("torch", "coremltools")}
    usage = USAGE.format(commands="\n".join(f"xcrun coremlcompiler compile {package} ." for package in packages))
    graphs = [replace(graph, then=tuple(then)) for graph in graphs]
    return Written(tuple(graphs), tuple(state), precision, tools, {"Load it in rwkv-mobile": usage})


def _refuse_pieces(spec: ModelSpec, pieces: Sequence[Piece]) -> None:
    """The runtime hands layer 0's values to all packages, and the ids of the tokens to the first only."""
    hint, several = "add -O chunk=none", len(pieces) > 1
    if several and not pieces[0].handed:
        raise WrongCall(f"rwkv-mobile hands v_first to every package, which RWKV-{spec.version} has none of", hint=hint)
    if several and any(spec.vocab in made.shape for piece in pieces for made in piece.blocks.parameters()):
        raise WrongCall(
            f"RWKV-{spec.version} looks up tables in every layer, and rwkv-mobile gives ids to one package only",
            hint=hint,
        )


def _functions(
    job: Job, pieces: Sequence[Piece], number: int, sizes: Mapping[str, int], recipe: Recipe
) -> dict[str, Any]:
    piece, part = pieces[number], f", part {number + 1} of {len(pieces)}" if len(pieces) > 1 else ""
    made = {}
    with graph.loaded(piece, job.progress):
        for name, size in sizes.items():
            with job.progress(f"converting {name} to an ML Program{part}"), quiet():
                made[name] = _converted(job, pieces, number, size, recipe)
    return made


def _converted(job: Job, pieces: Sequence[Piece], number: int, size: int, recipe: Recipe) -> Any:
    spec, piece = job.spec, pieces[number]
    between, logits = (1, size, spec.width), (1, 1, spec.vocab)
    taken = [Port(TOKENS, (1, size), "int32") if number == 0 else Port(TOKENS, between, "float16")]
    given = [Port(OUTPUT, logits if piece.last else between, "float16")]
    if piece.handed:
        (taken if number else given).append(Port(f"{FIRST}_in" if number else f"{FIRST}_out", between, "float16"))
    held = []
    for tensor in stacked(job, pieces, number):
        into, out = (Port(name, tensor.shape, tensor.dtype) for name in (tensor.input, tensor.output))
        if into == out:
            held.append(into)
        else:
            taken.append(into)
            given.append(out)
    return mil.converted(Stacked(piece), taken, given, recipe, states=held)


def _outside(state: Sequence[StateTensor], number: int, count: int) -> list[StateTensor]:
    """Ports as runtimes/mil/scoped.py names those of several packages."""
    scope = f"{number + 1}/" if count > 1 else ""
    return [replace(tensor, input=f"{scope}{tensor.input}", output=f"{scope}{tensor.output}") for tensor in state]


def stacked(job: Job, pieces: Sequence[Piece], number: int) -> tuple[StateTensor, ...]:
    """`state_tokenshift` (2, layers, C), the shifts of attention before those of the rest, and `state_wkv`
    (layers, H, N, N), float16, of a piece; `_in` and `_out` are appended to those that Core ML does not keep.
    """
    piece, mode = pieces[number], job.options["state"]
    part = range(piece.start, piece.stop) if len(pieces) > 1 else None
    att, wkv, ffn = ports.stacked(job.spec, dtype="float16", part=part).state
    shift = replace(
        att, name=f"{att.name}, {ffn.name}", shape=(2, *att.shape), axes=("kind", *att.axes), input="tokenshift"
    )
    return (
        _named(shift, held=mode == "mlstate"),
        _named(replace(wkv, input="wkv"), held=mode in ("mlstate", "mlstate-wkv")),
    )


def _named(tensor: StateTensor, *, held: bool) -> StateTensor:
    name = f"state_{tensor.input}"
    return replace(tensor, input=name if held else f"{name}_in", output=name if held else f"{name}_out")


class Stacked(nn.Module):
    """A piece with rwkv-mobile's shapes: tokens (1, T) or hidden (1, T, C), shifts (2, L, C), matrices (L, H, N, N)."""

    def __init__(self, piece: Piece) -> None:
        super().__init__()
        self.piece = piece

    def forward(self, taken: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Taken, v_first (1, T, C) after the first piece, shifts, matrices -> logits (1, 1, V) or hidden, and the same.

        The first of several pieces gives v_first.
        """
        *first, shift, wkv = tensors
        state = []
        for i in range(len(self.piece.blocks)):
            state += [shift[0, i : i + 1], wkv[i : i + 1], shift[1, i : i + 1]]
        hidden = [] if self.piece.start == 0 else [tensor.squeeze(0) for tensor in (taken, *first)]
        made = self.piece(taken.reshape(-1), *hidden, *state)
        given, new = made[: len(made) - len(state)], made[len(made) - len(state) :]
        shifts = torch.stack([torch.cat(new[::3]), torch.cat(new[2::3])])
        return (*(tensor.unsqueeze(0) for tensor in given), shifts, torch.cat(new[1::3]))


USAGE = """This folder is what rwkv-mobile's backend `coreml` loads, but for one step that needs a Mac with Xcode:

```
{commands}
```

That writes a `.mlmodelc` for each `.mlpackage`; beside those the runtime needs `config.yaml` and nothing else. Give it
the path of the folder as the model. It starts from zeros, feeds prompts in blocks of `prefill`'s tokens and what is
left over one at a time."""
