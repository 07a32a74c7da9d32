"""ONNX for ONNX Runtime's WebGPU provider, in browsers and outside: fixed shapes, no node of which needs the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from exporter import keep, ports
from exporter.contract import Job, ModelSpec, Target, Written
from exporter.passes import torch_half
from exporter.targets.onnx import DATA
from runtimes.manifest import Graph, Kept, Precision

if TYPE_CHECKING:
    import onnx_ir as ir

TARGETS = (
    Target(
        name="onnx-webgpu",
        summary="ONNX Runtime on GPUs through WebGPU: browsers, Windows, Linux, macOS; CUDA opens it too",
        runtime="ort",
        device="webgpu",
        precisions={"fp32": "fp32", "fp16": "fp16-sums", "int8": "int8", "int4": "int4"},
        options=(keep.OPTION,),
        prefill=True,
        also_runs=("ort:cuda", "ort:cpu"),
    ),
)

QUANTISED = {"int8": 8, "int4": 4}
OPSET = 21


def missing() -> str | None:
    """Everything it needs is a core dependency."""
    return None


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Only what is quantised can be kept from it."""
    keep.refuse(precision, options, quantised=precision in QUANTISED)


def export(job: Job, folder: Path) -> Written:
    """Write decode.onnx and one prefill{n}.onnx a size, which share one data file."""
    from exporter import onnx_graph
    from exporter.passes import onnx_weights

    named = _ports(job)
    weights: dict[str, ir.ExternalTensor] = {}
    graphs: list[Graph] = []
    kept: tuple[Kept, ...] = ()
    for size in (1, *job.prefill):
        name = "decode" if size == 1 else f"prefill{size}"
        with job.progress(f"tracing {name}"):
            model = onnx_graph.fixed(job.model, named, size, opset=OPSET)
            kept = _store(job, model)
        path = folder / f"{name}.onnx"
        if not graphs:
            weights = onnx_weights.save_with_data(model, path, DATA, job.progress)
        else:
            onnx_weights.save_sharing(model, path, weights)
        graphs.append(Graph(size, path.name, named.tokens, "int32", named.logits))
    tools = {name: version(name) for name in ("torch", "onnx", "onnxscript")}
    return Written(tuple(graphs), named.state, _precision(job, kept), tools, {"Step it in a browser": _usage(named)})


def _ports(job: Job) -> ports.Ports:
    """What inputs and outputs are called; the step becomes one of the precision's arithmetic."""
    named = replace(ports.own(job.spec), ids=torch.int32)
    return torch_half.halve(job.model, named, torch.float16) if job.precision == "fp16" else named


def _store(job: Job, model: ir.Model) -> tuple[Kept, ...]:
    """Rewrite the graph for weights of few bits, in place; what stays wider, and why."""
    from exporter.passes import onnx_columns, onnx_quantise
    from exporter.passes.onnx_rounding import Blocks

    if job.precision not in QUANTISED:
        onnx_columns.by_columns(model)
        return (torch_half.KEPT,) if job.precision == "fp16" else ()
    few, eight = Blocks(QUANTISED[job.precision], 32), Blocks(8, 32)
    preset = onnx_quantise.Preset(few, eight, few, onnx_quantise.TABLES)  # Blocks alone: per channel has no kernel
    return onnx_quantise.quantise(model, preset, wide=partial(keep.holds, job.options))


def _precision(job: Job, kept: tuple[Kept, ...]) -> Precision:
    if job.precision == "fp16":
        return Precision("float16", "float16", kept)
    stored = job.precision if job.precision in QUANTISED else "float32"
    return Precision(stored, "float32", (*keep.kept(job.options, "float32"), *kept))


def _usage(named: ports.Ports) -> str:
    first, *_ = named.state
    return USAGE.format(tokens=named.tokens, logits=named.logits, input=first.input, output=first.output, data=DATA)


USAGE = """With `onnxruntime-web`, served over https or from localhost:

```js
import * as ort from "onnxruntime-web/webgpu";

const session = await ort.InferenceSession.create("decode.onnx", {{
  executionProviders: ["webgpu"],
  externalData: [{{ path: "{data}", data: "{data}" }}],
  preferredOutputLocation: onGpu,  // {{ "{output}": "gpu-buffer", ... }}: no state leaves the GPU
}});
// inputs: {tokens} (int32) and every state input, e.g. {input}; start from the fill values below
const out = await session.run({{ {tokens}: new ort.Tensor("int32", [id], [1]), ...state }});
const logits = await out["{logits}"].getData();     // float32
// out["{output}"] becomes {input} of the next call; then dispose() the one before
```"""
