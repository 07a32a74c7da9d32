"""ExecuTorch .pte programs for iPhone, iPad and Mac: the step as a Core ML model, which the MIL interpreter runs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from exporter import graph, pte
from exporter.contract import Job, ModelSpec, Option, Spelling, Target, Written
from exporter.passes import pte_coreml
from exporter.passes.edge_fold import folded
from exporter.passes.torch_prepare import with_half_fills
from runtimes.manifest import Kept, Precision

UNITS = {"all": "ALL", "cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}

TARGETS = (
    Target(
        name="executorch-coreml",
        summary="ExecuTorch with Core ML: iPhone, iPad and Mac; checked on Linux by the MIL interpreter",
        runtime="mil",
        device="cpu",
        precisions={"fp32": "fp32", "fp16": "fp16"},
        spelling=Spelling(l2_eps=1e-7, block=8),
        options=(
            Option(
                "ios", ("16", "17", "18"), "18", "oldest iOS to support; prefill shares decode's weights from 18 on"
            ),
            Option("units", tuple(UNITS), "all", "what Core ML may use: all, cpu only, cpu and gpu, cpu and ane"),
        ),
        prefill=True,
    ),
)


def missing() -> str | None:
    """The delegate's compiler is a part of the executorch package that not every platform's has."""
    if not find_spec("executorch"):
        return "the Python package executorch is not installed"
    if not find_spec("executorch.backends.apple.coreml.executorchcoreml"):
        return "the Python package executorch has no Core ML compiler on this platform (executorchcoreml)"
    return None if find_spec("coremltools") else "the Python package coremltools is not installed"


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Every combination works."""


def export(job: Job, folder: Path) -> Written:
    """Lower the step to a program whose methods are one call of a Core ML model each."""
    if job.precision == "fp16":
        job = with_half_fills(job)
    programs = folded(pte.traced(job, ids=torch.int32))
    edge = pte.lowered(job, programs, lambda: [_partitioner(job)])
    dtype = "float16" if job.precision == "fp16" else "float32"
    kept = (Kept("token ids, and state between calls", "int32, float32", "the program's own types"),)
    precision = Precision(dtype, dtype, kept if job.precision == "fp16" else ())
    usage = {"Step it in Swift": SWIFT.format(delegate="`backend_coreml`")}
    tools = ("coremltools",)
    written = pte.written(job, edge, folder, precision=precision, ids=torch.int32, tools=tools, usage=usage)
    pte_coreml.make_reproducible(folder / pte.PROGRAM, graph.calls(job.prefill))
    return written


def _partitioner(job: Job) -> Any:
    import coremltools as ct
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.compiler.coreml_preprocess import MULTIMETHOD_WEIGHT_SHARING_STRATEGY as SHARE
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    specs = CoreMLBackend.generate_compile_specs(
        compute_unit=ct.ComputeUnit[UNITS[job.options["units"]]],
        minimum_deployment_target=getattr(ct.target, f"iOS{job.options['ios']}"),
        compute_precision=ct.precision.FLOAT16 if job.precision == "fp16" else ct.precision.FLOAT32,
    )
    share = SHARE.POSITIONAL if job.options["ios"] == "18" else SHARE.DISABLED  # one package of several functions
    specs.append(CoreMLBackend.generate_multimethod_weight_sharing_strategy_compile_spec(share))
    return CoreMLPartitioner(compile_specs=specs)


SWIFT = """Inputs and outputs are positional: the token ids, then the state tensors in the order listed below; the
logits, then the new state in the same order. With ExecuTorch's Swift interface, in an app that links {delegate}:

```swift
import ExecuTorch

let module = Module(filePath: "model.pte")
var state: [Tensor<Float>] = initialState                    // filled as listed below
var inputs: [ValueConvertible] = [Tensor<Int32>([token])]
inputs += state as [ValueConvertible]
let out = try module.execute("decode", inputs)
let logits: Tensor<Float> = out[0].tensor()!
// what comes out lies in the program's own memory, which the next call overwrites
state = out.dropFirst().map {{ (value: Value) in
    let tensor: Tensor<Float> = value.tensor()!
    return Tensor<Float>(tensor.scalars(), shape: tensor.shape)
}}
```

A method `prefill64` takes 64 ids at once, where it was exported."""
