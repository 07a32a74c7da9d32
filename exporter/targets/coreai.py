"""Core AI for iPhone, iPad and Mac from 2026 on: one .aimodel with a function for each number of tokens."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from exporter import graph, keep, ports
from exporter.contract import Job, ModelSpec, Option, Spelling, Target, Written
from exporter.models.layers import StepModel
from exporter.passes import coreai_names, coreai_weights
from exporter.passes.edge_fold import folded
from exporter.quiet import quiet
from runtimes.errors import Missing
from runtimes.manifest import Graph

TARGETS = (
    Target(
        name="coreai",
        summary="Core AI on iPhone, iPad and Mac (2026); checked on Linux by Apple's own interpreter",
        runtime="coreai",
        device="cpu",
        precisions={"fp32": "fp32", "fp16": "fp16", "int8": "int8", "int4": "int4", "lut8": "int8", "lut4": "int4"},
        spelling=Spelling(head_norm="layer_norm_affine", contract="multiply", l2_eps=1e-7, block=8),
        options=(
            Option("state", ("explicit", "held"), "explicit", "state as inputs and outputs, or written in place"),
            keep.OPTION,
        ),
        prefill=True,
        also_runs=("coreai:gpu", "coreai:ane"),
    ),
)

ASSET = "model.aimodel"
PACKAGES = {"coreai_torch": "coreai-torch", "coreai_opt": "coreai-opt"}


def missing() -> str | None:
    """Apple's converter and what compresses weights for it are extra packages."""
    for module, package in PACKAGES.items():
        if not find_spec(module):
            return f"the Python package {package} is not installed (pip install 'rwkv-export[coreai]')"
    return None


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Every combination works, palettes where there is a C++ compiler."""
    keep.refuse(precision, options, quantised=precision in coreai_weights.STORED)
    storage = coreai_weights.STORED.get(precision)
    if storage and storage.palette and (reason := coreai_weights.lacking()):
        raise Missing(reason, hint="install g++ or clang, and have ninja on the PATH; or choose int8 or int4")


def export(job: Job, folder: Path) -> Written:
    """Convert the step for one token and for each prefill size; the functions share the weights."""
    held = job.options["state"] == "held"
    wide, model = partial(keep.holds, job.options), cast(StepModel, job.model)
    precision = coreai_weights.give_values(model, job.spec, job.precision, job.progress, wide=wide)
    precision = replace(precision, kept=(*keep.kept(job.options, precision.compute), *precision.kept))
    named = ports.own(job.spec, dtype=precision.compute)
    if held:
        named = replace(named, state=tuple(replace(tensor, output=tensor.input) for tensor in named.state))
    program = _converted(job, named, getattr(torch, precision.compute), held=held)
    with job.progress(f"writing {ASSET}"), quiet():
        program.save_asset(folder / ASSET)
        coreai_names.make_reproducible(folder / ASSET, _subgraphs(program))
    graphs = tuple(
        Graph(size, ASSET, named.tokens, "int32", named.logits, function=name)
        for name, size in graph.calls(job.prefill).items()
    )
    tools = {name: version(name) for name in ("torch", "coreai-core", "coreai-opt", "coreai-torch")}
    usage = {"Step it in Swift": SWIFT_HELD if held else SWIFT.format(shift=named.state[0].input)}
    return Written(graphs, named.state, precision, tools, usage)


def _converted(job: Job, named: ports.Ports, dtype: torch.dtype, *, held: bool) -> Any:
    """The program of all functions, "decode" and "prefill{n}"."""
    with quiet():
        from coreai_torch import TorchConverter, get_decomp_table

        converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)  # without the source lines of operations
    module = Held(job.model, named, dtype) if held else job.model
    names = [tensor.input for tensor in named.state]
    outputs = [named.logits] if held else named.outputs()
    for name, size in graph.calls(job.prefill).items():
        with job.progress(f"tracing {name}"), quiet():
            tokens, *state = named.arguments(size)
            inputs = (tokens.to(torch.int32), *(() if held else (tensor.to(dtype) for tensor in state)))
            traced = folded({name: graph.trace(module, inputs)})[name].run_decompositions(get_decomp_table())
        with quiet():
            converter.add_exported_program(
                traced,
                input_names=[named.tokens] if held else named.inputs(),
                output_names=outputs,
                state_names=names if held else None,
                entrypoint_name=name,
            )
    with job.progress("converting to Core AI"), quiet(), contextlib.redirect_stdout(io.StringIO()):
        return converter.to_coreai()


class Held(nn.Module):
    """The step with its state in buffers that it overwrites: how Core AI is told of state that it writes in place."""

    def __init__(self, model: nn.Module, named: ports.Ports, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.names = [f"state_{number}" for number in range(len(named.state))]
        for name, tensor in zip(self.names, named.state, strict=True):
            self.register_buffer(name, torch.full(tensor.shape, tensor.fill, dtype=dtype))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (T,) -> logits (1, V)."""
        logits: Tensor
        logits, *new = self.model(tokens, *(self.get_buffer(name) for name in self.names))
        for name, tensor in zip(self.names, new, strict=True):
            self.get_buffer(name).copy_(tensor)
        return logits


def _subgraphs(program: Any) -> set[str]:
    """Names of what functions share, such as a layer norm."""
    graphs = program._module._mlir_module.body.operations
    return {each.attributes["sym_name"].value for each in graphs if "priv" in each.attributes}


SWIFT = """Add `model.aimodel` to the Xcode project, then:

```swift
import CoreAI

let model = try await AIModel(contentsOf: url)
let decode = try model.loadFunction(named: "decode")!
var inputs = initialState                      // every state input, filled as listed below
inputs["tokens"] = token                       // int32, one id
let out = try await decode.run(inputs: inputs)
let logits = out["logits"]
inputs["{shift}"] = out["{shift}.next"]        // and so for every state tensor
```

A function `prefill64` takes 64 ids at once, where it was exported; it shares the weights."""

SWIFT_HELD = """Add `model.aimodel` to the Xcode project, then:

```swift
import CoreAI

let model = try await AIModel(contentsOf: url)
let decode = try model.loadFunction(named: "decode")!
// `state`: every state tensor by name, filled as listed below; each call writes them in place
let out = try await decode.run(inputs: ["tokens": token], states: state)
let logits = out["logits"]
```

A function `prefill64` takes 64 ids at once, where it was exported; it shares the weights and the state."""
