"""Rockchip's NPUs: an ONNX step with the embedding outside, compiled by RKNN Toolkit 2 in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from exporter import calibration, ports
from exporter.contract import Job, ModelSpec, Option, Spelling, Target, Written
from exporter.passes import onnx_rows
from exporter.passes.onnx_rows import ROW
from exporter.passes.torch_prepare import with_half_fills
from runtimes import rknn
from runtimes.environments.rknn import ENVIRONMENT
from runtimes.errors import WrongCall
from runtimes.files import write_text_atomically
from runtimes.manifest import Graph, Kept, Lookup, Precision
from runtimes.rknn.quantise import CALIBRATION
from runtimes.tokenizer import kind_for

SOCS = ("rk3588", "rk3576")
TARGETS = (
    Target(
        name="rknn",
        summary="Rockchip's NPUs: boards with RK3588 or RK3576; runs on Linux in the toolkit's simulator",
        runtime="rknn",
        device="simulator",
        precisions={"fp16": "fp16", "w8a8": "int8"},
        spelling=Spelling(l2_eps=1e-7, block=8),
        options=(Option("soc", SOCS, SOCS[0], "the processor to compile for"),),
        prefill=True,
        also_runs=("rknn:npu",),
        calibrated=("w8a8",),
    ),
)
OPSET = 18
TABLE = "embedding.bin"
ROWS = "float16"  # their type
LIMIT = 2 << 30  # bytes of one ONNX file
READ = 64  # tokens, for ranges
PROJECTIONS = tuple(f"{part}.weight" for part in ("receptance", "key", "value", "gate", "output"))
HELD = Kept("what goes in and out", "float32", "the toolkit converts at the edges of the graph")
OUTSIDE = Kept(TABLE, "float16", "it is looked up outside the graph, a row a token")
REST = Kept(
    "everything but the projections of the blocks",
    "float16",
    "with 8 bits everywhere the state has 256 values: KL to 3.7 nats, 44 % of the greedy tokens wrong",
)
PRECISIONS = {
    "fp16": Precision("float16", "float16", (OUTSIDE, HELD)),
    "w8a8": Precision("int8", "int8", (REST, OUTSIDE, HELD)),
}


def missing() -> str | None:
    """Whether the toolkit's environment is set up."""
    return rknn.missing()


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Ranges are found on text, for which a tokenizer must be known."""
    if precision == "w8a8" and kind_for(spec.vocab) == "none":
        raise WrongCall(f"no known tokenizer has {spec.vocab} tokens to find ranges on a text with", hint="-p fp16")


def export(job: Job, folder: Path) -> Written:
    """Write the ONNX graph and the .rknn file of each size, and the table; w8a8 for one token only."""
    if job.prefill and job.precision == "w8a8":
        raise WrongCall("w8a8 graphs of several tokens would each find ranges of their own", hint="leave out --prefill")
    job = with_half_fills(job)
    named = ports.own(job.spec, rename=lambda name: name.replace(".", "_"))
    graphs, units = [], {}
    for size in (1, *job.prefill):
        name = "decode" if size == 1 else f"prefill{size}"
        source = folder / f"{name}.onnx"
        lookup = Lookup(TABLE, _write(job, named, source, size))
        units[name] = _compiled(job, named, source)
        compiled = source.with_suffix(".rknn").name
        graphs.append(Graph(size, source.name, ROW, ROWS, named.logits, lookup=lookup, compiled=compiled))
    tools = {tool: version(tool) for tool in ("torch", "onnx", "onnxscript")}
    tools["rknn-toolkit2"] = next(pin.partition("==")[2] for pin in ENVIRONMENT.pins if pin.startswith("rknn-"))
    return Written(tuple(graphs), named.state, PRECISIONS[job.precision], tools, {"On a board": _usage(job, units)})


def _write(job: Job, named: ports.Ports, source: Path, size: int) -> int:
    """The graph of so many tokens with its weights inside, and the table; returns the width of a row of that."""
    import onnx
    import onnx_ir as ir

    from exporter import onnx_graph

    with job.progress(f"tracing {source.stem}"):
        model = onnx_graph.fixed(job.model, named, size, opset=OPSET)
        tables = onnx_rows.lift(model)
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    if (total := sum(tensor.nbytes for tensor in weights)) >= LIMIT:
        raise WrongCall(f"{total} bytes of weights do not fit into one ONNX file of 2 GiB, which RKNN reads")
    with job.progress(f"writing {source.name}"):
        width = onnx_rows.write_table(tables, source.with_name(TABLE), ROWS)
        for value in model.graph.initializers.values():
            if value.const_value is not None:
                value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
        onnx.save(ir.to_proto(model), source)
    return width


def _compiled(job: Job, named: ports.Ports, source: Path) -> dict[str, int]:
    """Write the .rknn file beside the graph; where its operators would run, as the compiler says."""
    soc = job.options["soc"]
    if job.precision == "w8a8":
        recipe = {
            "tokens": [int(token) for token in calibration.passage(job.encode, job.text)[:READ]],
            "table": TABLE,
            "dtype": ROWS,
            "fills": [tensor.fill for tensor in named.state],
            "quantise": PROJECTIONS,
        }
        write_text_atomically(source.with_name(CALIBRATION), json.dumps(recipe) + "\n")
    command, env = rknn.process("runtimes.rknn.toolkit", str(source), str(source.with_suffix(".rknn")), soc)
    with job.progress(f"compiling {source.stem} for {soc}"):
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2] or f"status {done.returncode}"
        raise WrongCall(f"RKNN cannot compile {source.stem} in {job.precision} for {soc}: {said}")
    units: dict[str, int] = json.loads(done.stdout)
    return units


def _usage(job: Job, units: Mapping[str, Mapping[str, int]]) -> str:
    placed = "; ".join(
        f"`{name}`: " + ", ".join(f"{unit} {count}" for unit, count in counts.items()) for name, counts in units.items()
    )
    return USAGE.format(soc=job.options["soc"], placed=placed)


USAGE = """`decode.rknn` is compiled for {soc}. Operators by where they run there, as the compiler says: {placed}.

With Python and `pip install rknn-toolkit-lite2` on the board:

```python
import numpy as np
from rknnlite.api import RKNNLite

npu = RKNNLite()
npu.load_rknn("decode.rknn")
npu.init_runtime()
table = np.fromfile("embedding.bin", np.float16).reshape(vocab, -1)      # vocab: model.vocab in manifest.json
row = table[[token]].astype(np.float32)
logits, *state = npu.inference(inputs=[row, *state], data_format=["nchw"] * (1 + len(state)))
```

`state` is the list of tensors below, in that order, starting from their fill values; reshape each output to its shape.
The `.onnx` files are what was compiled, for another processor and for the simulator; the board does not need them."""
