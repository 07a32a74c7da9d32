"""The Core ML folder that rwkv-mobile loads, from a step: names, stacked state, config.yaml; it compiles nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from exporter import graph, mil, ports
from exporter.contract import Job, ModelSpec, Written
from exporter.mil import Port, Recipe
from exporter.models.layers import StepModel
from exporter.passes.mil_pieces import whole
from exporter.quiet import quiet
from runtimes.errors import WrongCall
from runtimes.manifest import Graph, Precision, StateTensor

BASENAME = "model"
PACKAGE = f"{BASENAME}_chunk1of1.mlpackage"
MODES = {"explicit": "tensor", "mlstate": "coreml"}
PREFILL = 16  # tokens, where no size is given: rwkv-mobile does not load a package without this function
TOKENS, LOGITS = "in0", "out0"


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Raise WrongCall for what it cannot load: RWKV-4, other logits than float16, one function a package, pieces."""
    ports.rwkv_mobile(spec)
    if precision in ("fp32", "mixed"):
        raise WrongCall(f"rwkv-mobile reads float16 logits, which {precision} does not give", hint="add -p fp16")
    if int(options["ios"]) < mil.MULTIFUNCTION:
        raise WrongCall(
            f"rwkv-mobile loads two functions of one package, which need iOS 18, not {options['ios']}",
            hint="add -O ios=18",
        )
    if options["chunk"] not in ("auto", "none"):
        raise WrongCall("with rwkv-mobile's names the step is one package", hint="leave out -O chunk")


def export(job: Job, folder: Path, recipe: Recipe, precision: Precision) -> Written:
    """Write the package, with one prefill function in any case, and config.yaml; raises WrongCall for several sizes."""
    if len(job.prefill) > 1:
        raise WrongCall(
            f"rwkv-mobile loads one function for prompts, not {len(job.prefill)}", hint="give one size: --prefill 16"
        )
    held = job.options["state"] == "mlstate"
    state, sizes = stacked(job.spec, held=held), {mil.STEP: 1, "prefill": (*job.prefill, PREFILL)[0]}
    (piece,) = whole(cast(StepModel, job.model))
    made = {}
    with graph.loaded(piece, job.progress):
        for name, size in sizes.items():
            with job.progress(f"converting {name} to an ML Program"), quiet():
                made[name] = _converted(Stacked(piece, job.spec), job.spec, size, state, recipe)
    with job.progress(f"writing {PACKAGE}"), quiet():
        mil.save(made, folder / PACKAGE)
    mode = MODES[job.options["state"]]
    (folder / "config.yaml").write_text(f"basename: {BASENAME}\nnum_chunks: 1\nstate_mode: {mode}\n", encoding="utf-8")
    graphs = tuple(Graph(size, PACKAGE, TOKENS, "int32", LOGITS, function=name) for name, size in sizes.items())
    tools = {name: version(name) for name in ("torch", "coremltools")}
    return Written(graphs, state, precision, tools, {"Load it in rwkv-mobile": USAGE})


def stacked(spec: ModelSpec, *, held: bool) -> tuple[StateTensor, ...]:
    """`state_tokenshift` (2, layers, C), the shifts of attention before those of the rest, and `state_wkv`
    (layers, H, N, N), float16; `_in` and `_out` are appended unless Core ML keeps them.
    """
    att, wkv, ffn = ports.stacked(spec, dtype="float16").state
    shift = replace(
        att, name=f"{att.name}, {ffn.name}", shape=(2, *att.shape), axes=("kind", *att.axes), input="tokenshift"
    )
    return tuple(_named(tensor, held=held) for tensor in (shift, replace(wkv, input="wkv")))


def _named(tensor: StateTensor, *, held: bool) -> StateTensor:
    name = f"state_{tensor.input}"
    return replace(tensor, input=name if held else f"{name}_in", output=name if held else f"{name}_out")


def _converted(module: nn.Module, spec: ModelSpec, size: int, state: tuple[StateTensor, ...], recipe: Recipe) -> object:
    tokens, logits = Port(TOKENS, (1, size), "int32"), Port(LOGITS, (1, 1, spec.vocab), "float16")
    into = [Port(tensor.input, tensor.shape, tensor.dtype) for tensor in state]
    out = [Port(tensor.output, tensor.shape, tensor.dtype) for tensor in state]
    if into[0].name == out[0].name:
        return mil.converted(module, [tokens], [logits], recipe, states=into)
    return mil.converted(module, [tokens, *into], [logits, *out], recipe)


class Stacked(nn.Module):
    """A step module with rwkv-mobile's shapes: tokens (1, T), shifts (2, L, C), matrices (L, H, N, N)."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.model = model
        self.layers = spec.layers

    def forward(self, tokens: Tensor, shift: Tensor, wkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same again as outputs, with logits (1, 1, V) in place of tokens."""
        state = []
        for i in range(self.layers):
            state += [shift[0, i : i + 1], wkv[i : i + 1], shift[1, i : i + 1]]
        logits, *new = self.model(tokens.reshape(-1), *state)
        shifts = torch.stack([torch.cat(new[::3]), torch.cat(new[2::3])])
        return logits.reshape(1, 1, -1), shifts, torch.cat(new[1::3])


USAGE = f"""This folder is what rwkv-mobile's backend `coreml` loads, but for one step that needs a Mac with Xcode:

```
xcrun coremlcompiler compile {PACKAGE} .
```

That writes `{PACKAGE.replace(".mlpackage", ".mlmodelc")}`, beside which the runtime needs `config.yaml` and nothing
else. Give it the path of the folder as the model. It starts from zeros, feeds prompts in blocks of `prefill`'s tokens
and what is left over one at a time."""
