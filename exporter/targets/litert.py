"""LiteRT (.tflite) for processors: a signature for each number of tokens, converted in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from exporter import archive, graph, ports
from exporter.contract import Job, ModelSpec, Target, Written
from exporter.passes.edge_fold import folded
from exporter.quiet import quiet
from runtimes import litert
from runtimes.environments.litert import ENVIRONMENT
from runtimes.errors import WrongCall
from runtimes.manifest import Graph, Precision

TARGETS = (
    Target(
        name="litert",
        summary="LiteRT, formerly TensorFlow Lite: processors of phones and of Linux; experimental",
        runtime="litert",
        device="cpu",
        precisions={"fp32": "fp32"},
        prefill=True,
    ),
)
FILE = "model.tflite"
LIMIT = 2 << 30  # bytes of a FlatBuffer
TOOLS = ("torch", "litert-torch", "litert-converter", "ai-edge-litert")


def missing() -> str | None:
    """Whether the converter's environment is set up."""
    return litert.missing(litert.CONVERTER)


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Every combination works."""


def export(job: Job, folder: Path) -> Written:
    """Write one file with a signature for each number of tokens, which share the weights."""
    size = sum(made.numel() * 4 for made in job.model.parameters())
    if size >= LIMIT:
        raise WrongCall(f"{size} bytes of float32 weights do not fit into one .tflite file of 2 GiB")
    named = ports.own(job.spec, rename=lambda name: name.replace(".", "_"))
    named = replace(named, ids=torch.int32)  # the converter narrows int64 by itself
    sizes = {1: "decode"} | {tokens: f"prefill{tokens}" for tokens in job.prefill}
    with TemporaryDirectory() as scratch:
        programs = _traced(job, named, sizes, Path(scratch))
        _convert(job, named, programs, folder / FILE)
    graphs = [Graph(tokens, FILE, named.tokens, "int32", named.logits, function=name) for tokens, name in sizes.items()]
    pins = (pin.partition("==") for pin in (*ENVIRONMENT.resolved, *ENVIRONMENT.pins))
    tools = {tool: version for tool, _, version in pins if tool in TOOLS}
    return Written(tuple(graphs), named.state, Precision("float32", "float32"), tools, {"Without this package": USAGE})


def _traced(job: Job, named: ports.Ports, sizes: Mapping[int, str], scratch: Path) -> dict[str, str]:
    """A program for each number of tokens as a .pt2 file, masks computed beforehand; the files by signature."""
    graph.load_weights(job.model, job.progress)
    files = {}
    for tokens, name in sizes.items():
        with job.progress(f"tracing {name}"), quiet():
            program = graph.trace(job.model, named.arguments(tokens))
            path = scratch / f"{name}.pt2"
            archive.save(folded({name: program})[name], path)
        files[name] = str(path)
    return files


def _convert(job: Job, named: ports.Ports, programs: Mapping[str, str], made: Path) -> None:
    command, env = litert.process(litert.CONVERTER, "runtimes.litert.convert")
    asked = {"programs": programs, "made": str(made), "inputs": named.inputs(), "outputs": named.outputs()}
    with job.progress("converting"):
        done = subprocess.run(command, env=env, input=json.dumps(asked), capture_output=True, text=True, check=False)
    if done.returncode or not made.exists():
        said = done.stderr.strip().rpartition("\n")[2] or f"status {done.returncode}"
        raise WrongCall(f"LiteRT cannot convert RWKV-{job.spec.version}: {said}")


USAGE = """With Python and `pip install ai-edge-litert`:

```python
import json
import numpy as np
from ai_edge_litert.interpreter import Interpreter

tensors = json.load(open("manifest.json"))["state"]
state = {tensor["input"]: np.full(tensor["shape"], tensor["fill"], np.float32) for tensor in tensors}
step = Interpreter("model.tflite").get_signature_runner("decode")
made = step(tokens=np.array([1], np.int32), **state)
logits, state = made["logits"], {tensor["input"]: made[tensor["output"]] for tensor in tensors}
```

On Android, LiteRT's `Interpreter` has the same in `runSignature(inputs, outputs, "decode")`."""
