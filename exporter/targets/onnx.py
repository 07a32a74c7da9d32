"""ONNX for ONNX Runtime on CPUs: traced without the weights, which are then streamed into one external data file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from exporter import calibration, keep, ports
from exporter.contract import Job, ModelSpec, Option, Target, Written
from runtimes.contract import Array
from runtimes.errors import WrongCall
from runtimes.manifest import Graph, Kept, Precision

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from exporter.simulation import Simulation

QUANTISED = {"int8": "int8", "int8-b32": "int8", "int4": "int4", "int4-int8": "int4", "int4-b128": "int4"}
STORED = {"fp32": "float32", "fp16": "float16"} | {name: name for name in QUANTISED}

TARGETS = (
    Target(
        name="onnx-cpu",
        summary="ONNX Runtime on x86 and Arm CPUs: Linux, Windows, macOS, Android, iOS",
        runtime="ort",
        device="cpu",
        precisions={"fp32": "fp32", "fp16": "fp16-weights", **QUANTISED},
        options=(
            Option(
                "graphs",
                ("one", "each"),
                "one",
                "with --prefill: one file for every number of tokens, which holds the weights once in memory, or a "
                "file of fixed shapes for each, as rwkv-mobile's names always give",
            ),
            Option(
                "state",
                ("separate", "stacked"),
                "separate",
                "a tensor for each layer and kind of state, or one for each kind, (layers, ...), which is less to bind",
            ),
            Option(
                "names", ("own", "rwkv-mobile"), "own", "input and output names and shapes; rwkv-mobile: in, state0_in"
            ),
            Option("opset", ("18", "20", "21", "23"), "18", "ONNX operator set; older ones load in more runtimes"),
            calibration.OPTION,
            keep.OPTION,
        ),
        prefill=True,
        also_runs=("ort:cpu-fused",),
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
    """rwkv-mobile's names exist for some versions and separate state, calibration for 4 bits and known vocabularies."""
    if options["names"] == "rwkv-mobile":
        ports.rwkv_mobile(spec)
        if options["state"] == "stacked":
            raise WrongCall("rwkv-mobile loads a state tensor for each layer", hint="leave out -O state=stacked")
    calibration.refuse(spec, precision, options["calibrate"], four_bits=precision.startswith("int4"))
    keep.refuse(precision, options, quantised=precision in QUANTISED)


def simulation(precision: str) -> Simulation | None:
    """What quantising makes of single matrices."""
    if precision not in QUANTISED:
        return None
    from exporter.passes import onnx_quantise, onnx_simulation

    return onnx_simulation.OnnxSimulation(onnx_quantise.PRESETS[precision])


def export(job: Job, folder: Path) -> Written:
    """Write decode.onnx and one prefill{n}.onnx a size, or one model.onnx for all sizes, on one data file."""
    from exporter.passes import onnx_weights

    named, module = _ports(job)
    inside = next(path for path, part in module.named_modules() if part is job.model)
    moments = {f"{inside}.{name}".removeprefix("."): moment for name, moment in _moments(job).items()}
    graphs: list[Graph] = []
    for name, sizes in _files(job).items():
        with job.progress(f"tracing {name}"):
            model, up_to = _traced(module, named, sizes, int(job.options["opset"]))
            kept = _store(job, model, moments, inside)
        path = folder / f"{name}.onnx"
        if not graphs:
            weights = onnx_weights.save_with_data(model, path, DATA, job.progress)
        else:
            onnx_weights.save_sharing(model, path, weights)
        graphs += [_entry(path.name, size, named, up_to=up_to and size > 1) for size in sizes]
    precision = Precision(STORED[job.precision], "float32", kept)
    return Written(tuple(graphs), named.state, precision, _tools(), {"Step it elsewhere": _usage(named, graphs[0])})


def _files(job: Job) -> dict[str, tuple[int, ...]]:
    """What each graph file is called, and the numbers of tokens it is for."""
    sizes = (1, *job.prefill)
    if job.prefill and job.options["graphs"] == "one" and job.options["names"] == "own":
        return {"model": sizes}
    return {"decode" if size == 1 else f"prefill{size}": (size,) for size in sizes}


def _ports(job: Job) -> tuple[ports.Ports, nn.Module]:
    """What inputs and outputs are called, and the step with these."""
    if job.options["names"] == "rwkv-mobile":
        return ports.rwkv_mobile(job.spec), ports.Widened(job.model, job.spec)
    if job.options["state"] == "stacked":
        return ports.stacked(job.spec), ports.Stacked(job.model, job.spec)
    return ports.own(job.spec), job.model


def _traced(module: nn.Module, named: ports.Ports, sizes: tuple[int, ...], opset: int) -> tuple[ir.Model, bool]:
    """The graph, and whether it takes any number of tokens up to the largest size."""
    from exporter import onnx_graph

    if len(sizes) > 1:
        return onnx_graph.joined(module, named, sizes[1:], opset=opset)
    return onnx_graph.fixed(module, named, sizes[0], opset=opset), False


def _entry(file: str, size: int, named: ports.Ports, *, up_to: bool) -> Graph:
    ids = str(named.ids).removeprefix("torch.")
    return Graph(size, file, named.tokens, ids, named.logits, up_to=up_to)


def _moments(job: Job) -> Mapping[str, Array]:
    """What every matrix takes on a text, by its name; nothing where no calibration is wanted."""
    if job.options["calibrate"] == "none":
        return {}
    return calibration.inputs_of(job.model, job.spec, calibration.passage(job.encode, job.text), job.progress)


def _store(job: Job, model: ir.Model, moments: Mapping[str, Array], inside: str) -> tuple[Kept, ...]:
    """Rewrite the graph for weights stored in the job's precision; what stays wider, and why.

    inside: the path of the job's model in what was traced, which its parameters' names begin with
    """
    if job.precision == "fp32":
        return ()
    if job.precision == "fp16":
        from exporter.passes import onnx_weights

        onnx_weights.halve(model)
        return (KEPT,)
    from exporter.passes import onnx_quantise

    def wide(name: str) -> bool:
        return keep.holds(job.options, name.removeprefix(f"{inside}."))

    kept = onnx_quantise.quantise(model, onnx_quantise.PRESETS[job.precision], moments, wide=wide)
    return (*keep.kept(job.options, "float32"), *kept)


def _tools() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "onnx", "onnxscript")}


def _usage(named: ports.Ports, step: Graph) -> str:
    first, *_ = named.state
    ports = {"tokens": named.tokens, "logits": named.logits, "input": first.input, "output": first.output}
    ids = "intArrayOf(token)" if step.input_dtype == "int32" else "longArrayOf(token)"
    for _ in range(named.leading):
        ids = f"arrayOf({ids})"
    return USAGE.format(file=step.file, data=DATA, ids=ids, **ports)


USAGE = """Any ONNX Runtime package opens `{file}` (keep `{data}` beside it). In Kotlin, with
`com.microsoft.onnxruntime:onnxruntime-android`:

```kotlin
val env = OrtEnvironment.getEnvironment()
val session = env.createSession("$folder/{file}")
val ids = OnnxTensor.createTensor(env, {ids})
val out = session.run(state + mapOf("{tokens}" to ids))             // state: by input, filled as listed below
val logits = (out["{logits}"].get() as OnnxTensor).floatBuffer      // the next token's
next["{input}"] = out["{output}"].get() as OnnxTensor               // and so for every state tensor
```

The new state lies in what a call returned: close that only after the call that took the state."""
