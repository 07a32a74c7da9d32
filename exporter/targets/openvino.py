"""OpenVINO's own format for Intel's CPUs, GPUs and NPUs: a graph for each number of tokens, on one file of weights."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import keep, ports
from exporter.contract import Job, ModelSpec, Spelling, Target, Written
from exporter.quiet import quiet
from runtimes import openvino
from runtimes.errors import Missing
from runtimes.manifest import Graph, Kept, Precision

if TYPE_CHECKING:
    import onnx_ir as ir

QUANTISED = {"int8": "int8", "int4": "int4"}
TARGETS = (
    Target(
        name="openvino",
        summary="OpenVINO on Intel and AMD processors, and Intel's GPUs and NPUs",
        runtime="openvino",
        device="cpu",
        precisions={"fp32": "fp32", "fp16": "fp16-weights", **QUANTISED},
        spelling=Spelling(block=16),
        options=(keep.OPTION,),
        prefill=True,
        also_runs=("openvino:gpu", "openvino:npu"),
    ),
)
OPSET = 20
WEIGHTS = openvino.WEIGHTS
VECTORS = Kept(
    "vectors, and matrices that no product or lookup takes",
    "float32",
    "norms, mixing weights and decays are a thousandth of the bytes, and a rounded decay is wrong at every token",
)


def missing() -> str | None:
    """OpenVINO writes its own format."""
    return openvino.absent()


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """What compresses weights is a package of its own."""
    keep.refuse(precision, options, quantised=precision in QUANTISED)
    if precision in QUANTISED and (reason := openvino.cannot_compress()):
        raise Missing(reason, hint="-p fp32 and fp16 need OpenVINO only")


def export(job: Job, folder: Path) -> Written:
    """Write decode.xml, prefill{n}.xml and the weights that they share."""
    from exporter.passes import openvino_graphs

    named = ports.own(job.spec)
    graphs, kept = [], tuple[Kept, ...]()
    for size in (1, *job.prefill):
        name = "decode" if size == 1 else f"prefill{size}"
        model = _model(job, named, size, name)
        if job.precision in QUANTISED:
            with job.progress(f"compressing the weights of {name}"), quiet():
                kept = openvino_graphs.compress(model, job.precision, lambda matrix: keep.holds(job.options, matrix))
        with job.progress(f"writing {name}.xml"):
            openvino_graphs.save(model, folder / f"{name}.xml")
        graphs.append(Graph(size, f"{name}.xml", named.tokens, "int64", named.logits))
    openvino_graphs.share([folder / graph.file for graph in graphs], folder / WEIGHTS)
    return Written(tuple(graphs), named.state, _precision(job, kept), _tools(job), {"Step it elsewhere": USAGE})


def _model(job: Job, named: ports.Ports, size: int, name: str) -> Any:
    """OpenVINO's model of so many tokens, as its reader of ONNX makes it."""
    from exporter import onnx_graph
    from exporter.passes import onnx_balance, onnx_weights, openvino_graphs

    with job.progress(f"tracing {name}"):
        graph: ir.Model = onnx_graph.fixed(job.model, named, size, opset=OPSET)
        if job.precision == "fp16":
            onnx_weights.halve(graph)
        elif job.precision in QUANTISED:
            onnx_balance.balance(graph)
    with tempfile.TemporaryDirectory() as scratch:
        onnx_weights.save_with_data(graph, Path(scratch) / "step.onnx", "step.data", job.progress)
        return openvino_graphs.read(Path(scratch) / "step.onnx")


def _precision(job: Job, kept: tuple[Kept, ...]) -> Precision:
    stored = {"fp32": "float32", "fp16": "float16"}.get(job.precision, job.precision)
    if job.precision == "fp32":
        return Precision(stored, "float32")
    return Precision(stored, "float32", (*keep.kept(job.options, "float32"), *kept, VECTORS))


def _tools(job: Job) -> dict[str, str]:
    names = ("torch", "onnx", "onnxscript", "openvino", *(["nncf"] if job.precision in QUANTISED else []))
    return {name: version(name) for name in names}


USAGE = f"""Any OpenVINO opens the graphs, with the weights named beside them. In Python:

```python
import openvino

core = openvino.Core()
model = core.read_model("decode.xml", "{WEIGHTS}")
settings = {{"INFERENCE_PRECISION_HINT": "f32"}}      # or it multiplies in bfloat16 where the processor can
request = core.compile_model(model, "CPU", settings).create_infer_request()
out = request.infer({{"tokens": token, **state}})     # `token` int64 (1,), `state` filled as listed below
```

In C++ the calls have the same names."""
