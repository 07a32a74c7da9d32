"""ONNX for ONNX Runtime on CPUs: traced without the weights, which are then streamed into one external data file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, cast

from exporter import graph, ports
from exporter.contract import Job, ModelSpec, Option, Target, Written
from exporter.quiet import quiet
from runtimes.manifest import Graph, Kept, Precision

if TYPE_CHECKING:
    import onnx_ir as ir

TARGETS = (
    Target(
        name="onnx-cpu",
        summary="ONNX Runtime on x86 and Arm CPUs: Linux, Windows, macOS, Android, iOS",
        runtime="ort",
        device="cpu",
        precisions={"fp32": "fp32", "fp16": "fp16-weights"},
        options=(
            Option(
                "names", ("own", "rwkv-mobile"), "own", "input and output names and shapes; rwkv-mobile: in, state0_in"
            ),
            Option("opset", ("18", "20", "21", "23"), "18", "ONNX operator set; older ones load in more runtimes"),
        ),
        prefill=True,
    ),
)

DATA = "model.onnx.data"

KEPT = Kept(
    "vectors, and matrices that no product or lookup takes",
    "float32",
    "norms, mixing weights and decays are a thousandth of the bytes, and a rounded decay is wrong at every token",
)


def missing() -> str | None:
    """Everything it needs is a core dependency."""
    return None


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """rwkv-mobile's names exist for some versions only."""
    if options["names"] == "rwkv-mobile":
        ports.rwkv_mobile(spec)


def export(job: Job, folder: Path) -> Written:
    """Write decode.onnx and one prefill{n}.onnx a size, all on one data file."""
    from exporter.passes import onnx_weights

    mobile = job.options["names"] == "rwkv-mobile"
    named = ports.rwkv_mobile(job.spec) if mobile else ports.own(job.spec)
    graphs, weights = [], {}
    for tokens in (1, *job.prefill):
        name = "decode" if tokens == 1 else f"prefill{tokens}"
        with job.progress(f"tracing {name}"):
            model = _trace(job, named, tokens, mobile)
            if job.precision == "fp16":
                onnx_weights.halve(model)
        path = folder / f"{name}.onnx"
        if tokens == 1:
            weights = onnx_weights.save_with_data(model, path, DATA, job.progress)
        else:
            onnx_weights.save_sharing(model, path, weights)
        graphs.append(Graph(tokens, path.name, named.tokens, "int32" if mobile else "int64", named.logits))
    half = Precision("float16", "float32", (KEPT,))
    precision = half if job.precision == "fp16" else Precision("float32", "float32")
    return Written(tuple(graphs), named.state, precision, _tools(), {"Step it elsewhere": _usage(named)})


def _trace(job: Job, named: ports.Ports, tokens: int, mobile: bool) -> ir.Model:
    """The optimised graph, its weights still in the checkpoint."""
    import torch

    from exporter.passes import onnx_tidy, onnx_weights

    model, inputs = job.model, graph.arguments(job.spec, tokens)
    if mobile:
        model = ports.Widened(model, job.spec)
        state = (torch.full(tensor.shape, tensor.fill) for tensor in named.state)
        inputs = (torch.zeros(1, tokens, dtype=torch.int32), *state)
    program = graph.trace_without_weights(model, inputs)
    with quiet():
        exported = torch.onnx.export(
            program,
            inputs,
            dynamo=True,
            opset_version=int(job.options["opset"]),
            input_names=named.inputs(),
            output_names=named.outputs(),
            optimize=False,
            verbose=False,
        )
    made = cast("torch.onnx.ONNXProgram", exported).model  # None only where a path is given
    onnx_weights.attach(made, dict(model.named_parameters()))
    onnx_tidy.tidy(made)
    onnx_tidy.strip(made)
    return made


def _tools() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "onnx", "onnxscript")}


def _usage(named: ports.Ports) -> str:
    first, *_ = named.state
    return USAGE.format(tokens=named.tokens, logits=named.logits, input=first.input, output=first.output, data=DATA)


USAGE = """Any ONNX Runtime package opens `decode.onnx` (keep `{data}` beside it). In Kotlin, with
`com.microsoft.onnxruntime:onnxruntime-android`:

```kotlin
val env = OrtEnvironment.getEnvironment()
val session = env.createSession("decode.onnx")
// inputs: {tokens} and every state input, e.g. {input}; start from the fill values below
session.run(inputs).use {{ out ->
    val logits = out.get("{logits}").get()          // the next token's logits
    val shift = out.get("{output}").get()           // becomes {input} of the next call
}}
```"""
