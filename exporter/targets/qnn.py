"""ONNX for Qualcomm's Hexagon NPUs through ONNX Runtime: graphs, and QNN's context binary of them for one processor."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter import calibration, keep, ports
from exporter.contract import Job, ModelSpec, Option, Spelling, Target, Written
from exporter.passes.torch_prepare import with_half_fills
from runtimes.errors import WrongCall
from runtimes.manifest import Graph, Kept, Precision
from runtimes.qnn import provider
from runtimes.qnn.chips import CHIPS

if TYPE_CHECKING:
    import onnx_ir as ir

    from exporter.simulation import Simulation

SOCS = tuple(CHIPS)
BITS = {"a16w8": 8, "a16w4": 4}
TARGETS = (
    Target(
        name="qnn",
        summary="ONNX Runtime with Qualcomm's QNN: Hexagon NPUs of Snapdragon phones and laptops; emulated on Linux",
        runtime="qnn",
        device="htp-emulator",
        precisions={"fp16": "fp16", "a16w8": "int8", "a16w4": "int4"},
        spelling=Spelling(l2_eps=1e-7, block=8),
        options=(
            Option("soc", SOCS, SOCS[0], "the processor to compile for; sm8650 is Snapdragon 8 Gen 3"),
            Option(
                "quantise",
                ("projections", "all"),
                "projections",
                "with 8 bits: the projections, the rest staying float16; or every operation, which is an experiment",
            ),
            keep.OPTION,
        ),
        prefill=True,
        also_runs=("qnn:htp",),
        kernel="ort:cpu",
        calibrated=tuple(BITS),
    ),
)
OPSET = 21  # the first whose own quantise operators have 16 and 4 bits
DATA = "model.onnx.data"
CALIBRATION = 256  # tokens, or four calls of the graph if that is more
OUTSIDE = Kept("token ids, logits, and state between calls", "int64, float32", "the graph's own types")
VECTORS = Kept("vectors in the files", "float32", "a thousandth of the bytes; the processor computes in float16")
ROUNDED = Kept("what projections take and give", "uint16", "integer products; 65536 even steps, calibrated on text")
REST = Kept("recurrence, norms, decay, embedding", "float16", "a rounded decay is wrong at every token")


def missing() -> str | None:
    """Whether QNN's compiler is on this machine."""
    return provider.missing()


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Everything is quantised to 8 bits only, without a keep list, and not where a state starts at minus infinity."""
    keep.refuse(precision, options, quantised=precision in BITS)
    if options["quantise"] == "projections":
        return
    if precision != "a16w8":
        raise WrongCall(f"-O quantise=all is for a16w8, not {precision}", hint="leave it out")
    if keep.names(options):
        raise WrongCall("-O quantise=all keeps no matrix", hint="leave out one of quantise and keep")
    if wide := [tensor for tensor in spec.state if tensor.fill]:
        raise WrongCall(
            f"16 bits cannot hold {wide[0].name}, which starts at {wide[0].fill:g}, in 65536 even steps",
            hint="leave out -O quantise=all",
        )


def simulation(precision: str) -> Simulation | None:
    """What quantising the projections makes of single matrices."""
    if precision not in BITS:
        return None
    from exporter.passes.static_simulation import StaticSimulation

    return StaticSimulation(BITS[precision])


def export(job: Job, folder: Path) -> Written:
    """Write a graph and its context for each size; graphs share model.onnx.data, contexts one binary."""
    from exporter.passes import onnx_weights, qnn_check, qnn_context

    job = with_half_fills(job)
    named = ports.own(job.spec)
    files = [folder / ("decode.onnx" if size == 1 else f"prefill{size}.onnx") for size in (1, *job.prefill)]
    weights: dict[str, ir.ExternalTensor] = {}
    for file, size in zip(files, (1, *job.prefill), strict=True):
        model = _model(job, named, size)
        if not weights:
            weights = onnx_weights.save_with_data(model, file, DATA, job.progress)
        else:
            onnx_weights.save_sharing(model, file, _shared(model, weights))
    for file in files if job.options["quantise"] == "all" else files[1:]:
        qnn_check.require_right(file, named, job.spec.vocab, job.options["soc"], job.progress)
    contexts = qnn_context.compiled(files, job.options["soc"], job.progress)
    graphs = []
    for file, size in zip(files, (1, *job.prefill), strict=True):
        context, taken = contexts[file.name]
        graphs.append(Graph(size, file.name, named.tokens, "int64", named.logits, coverage=taken, compiled=context))
    usage = {"On a device": USAGE.format(soc=job.options["soc"], context=graphs[0].compiled)}
    return Written(tuple(graphs), named.state, _precision(job), _tools(), usage)


def _model(job: Job, named: ports.Ports, size: int) -> ir.Model:
    """The graph of so many tokens in the job's precision, its matrices stored in half precision or fewer bits."""
    from exporter import onnx_graph
    from exporter.passes import onnx_weights, qnn_activations

    with job.progress("tracing " + ("decode" if size == 1 else f"prefill{size}")):
        model = onnx_graph.fixed(job.model, named, size, opset=OPSET)
        qnn_activations.keep_activations_apart(model)
    if job.precision in BITS:
        model = _quantised(job, model, named, size)
    onnx_weights.halve(model)
    return model


def _quantised(job: Job, model: ir.Model, named: ports.Ports, size: int) -> ir.Model:
    import onnx
    import onnx_ir as ir

    from exporter.passes import onnx_weights, qnn_quantise

    tokens = calibration.passage(job.encode, job.text)[: max(CALIBRATION, 4 * size)]
    with tempfile.TemporaryDirectory() as scratch:
        source, made = Path(scratch) / "float.onnx", Path(scratch) / "quantised.onnx"
        onnx_weights.save_with_data(model, source, DATA, job.progress)
        if job.options["quantise"] == "all":
            qnn_quantise.everything(source, made, named, tokens, job.progress)
        else:
            qnn_quantise.projections(
                source,
                made,
                named,
                tokens,
                job.progress,
                bits=BITS[job.precision],
                wide=lambda name: keep.holds(job.options, name),
            )
        return ir.from_proto(onnx.load(made))


def _shared(model: ir.Model, weights: Mapping[str, ir.ExternalTensor]) -> dict[str, ir.ExternalTensor]:
    """Those of the first graph's weights that the second has too, value for value: scales of biases may differ."""
    own = {name: initializer.const_value for name, initializer in model.graph.initializers.items()}
    pairs = ((name, tensor, own.get(name)) for name, tensor in weights.items())
    return {name: one for name, one, other in pairs if other is not None and np.array_equal(one.numpy(), other.numpy())}


def _precision(job: Job) -> Precision:
    if job.precision == "fp16":
        return Precision("float16", "float16", (VECTORS, OUTSIDE))
    if job.options["quantise"] == "all":
        return Precision("int8", "uint16", (OUTSIDE,))
    kept = keep.kept(job.options, "float16")
    return Precision(f"int{BITS[job.precision]}", "float16", (*kept, ROUNDED, REST, VECTORS, OUTSIDE))


def _tools() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-qnn")}


USAGE = """Copy `*_ctx.onnx` and the `.bin` beside them: they are compiled for {soc}, weights included. An ONNX Runtime
with the QNN execution provider of this version or a later one loads them without compiling. On a Snapdragon laptop:

```python
import onnxruntime as ort, onnxruntime_qnn as qnn

ort.register_execution_provider_library("QNNExecutionProvider", qnn.get_library_path())
options = ort.SessionOptions()
npu = [device for device in ort.get_ep_devices() if device.ep_name == "QNNExecutionProvider"]
options.add_provider_for_devices(npu[:1], {{"backend_path": qnn.get_qnn_htp_path()}})
session = ort.InferenceSession("{context}", options)
```

The other `.onnx` files and `model.onnx.data` are what the contexts were compiled from. Any ONNX Runtime runs them on a
CPU, which `rwkv-export validate` does to tell the NPU's rounding from that of the weights."""
