"""ExecuTorch .pte programs for CPUs: XNNPACK, which takes the whole step as one delegate, and the portable kernels."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from exporter import graph, ports
from exporter.contract import Job, ModelSpec, Spelling, Target, Written
from exporter.quiet import quiet
from runtimes.manifest import Graph, Precision

TARGETS = (
    Target(
        name="executorch-xnnpack",
        summary="ExecuTorch with XNNPACK kernels: Android, iOS and Linux CPUs",
        runtime="pte",
        device="cpu",
        precisions={"fp32": "fp32"},
        spelling=Spelling(norm="linear", head_norm="linear", reduce="linear", contract="multiply"),
    ),
    Target(
        name="executorch-portable",
        summary="ExecuTorch with its portable kernels: any CPU, also bare metal; slow",
        runtime="pte",
        device="cpu",
        precisions={"fp32": "fp32"},
    ),
)

PROGRAM = "model.pte"


def missing() -> str | None:
    """Everything it needs is a core dependency."""
    return None


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Every combination works."""


def export(job: Job, folder: Path) -> Written:
    """Lower the step to one method, `forward`."""
    graph.load_weights(job.model, job.progress)
    named = ports.own(job.spec)
    with job.progress("lowering to ExecuTorch"), quiet():
        program = _lower(job)
    with job.progress(f"writing {PROGRAM}"), (folder / PROGRAM).open("wb") as file:
        program.write_to_file(file)
    tools = {name: version(name) for name in ("torch", "executorch")}
    graphs = (Graph(1, PROGRAM, named.tokens, "int64", named.logits, function="forward"),)
    return Written(graphs, named.state, Precision("float32", "float32"), tools, {"Step it in Kotlin": KOTLIN})


def _lower(job: Job) -> Any:
    import torch
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    program = graph.trace(job.model, graph.arguments(job.spec, 1))
    if job.target.name == "executorch-portable":
        # Without this, every linear copies its transposed weight at every step.
        config = EdgeCompileConfig(preserve_ops=[torch.ops.aten.linear.default])
        return to_edge_transform_and_lower(program, compile_config=config).to_executorch()
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()


KOTLIN = """Inputs and outputs are positional: the token ids (int64), then the state tensors in the order listed
below; the logits, then the new state in the same order. With `org.pytorch:executorch-android`:

```kotlin
val module = Module.load("model.pte")
var state: Array<EValue> = initialState                     // filled as listed below
val out = module.forward(EValue.from(Tensor.fromBlob(longArrayOf(token), longArrayOf(1))), *state)
val logits = out[0].toTensor().dataAsFloatArray
state = out.copyOfRange(1, out.size)
```"""
