"""ExecuTorch programs: a method for each number of tokens, traced, lowered, described, written; knows no delegate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from exporter import graph, ports
from exporter.contract import Job, ModelSpec, Option, Written
from exporter.coverage import coverage
from exporter.quiet import quiet
from exporter.unburdened import unburdened
from runtimes.manifest import Graph, Precision

PROGRAM = "model.pte"
WEIGHTS = "model"  # the toolchain appends .ptd

WEIGHTS_OPTION = Option(
    "weights",
    ("inside", "separate"),
    "inside",
    "in model.pte, or in a model.ptd beside it, which several programs can share",
)


def traced(job: Job, *, ids: torch.dtype = torch.int64, module: nn.Module | None = None) -> dict[str, ExportedProgram]:
    """A program for each method, "decode" and "prefill{n}", on the same parameters.

    ids:    type of the token ids
    module: the step where it is not `job.model` itself; its parameters have values

    The weights of `job.model` are read where no module is given.
    """
    if module is None:
        graph.load_weights(job.model, job.progress)
        module = job.model
    programs = {}
    for name, size in graph.calls(job.prefill).items():
        tokens, *state = graph.arguments(job.spec, size)
        with job.progress(f"tracing {name}"), quiet():
            programs[name] = graph.trace(module, (tokens.to(ids), *state))
    return programs


def lowered(
    job: Job,
    programs: Mapping[str, ExportedProgram],
    partitioner: Callable[[], list[Any]] = list,
    *,
    preserve: Sequence[Any] = (),
    passes: Sequence[Callable[[GraphModule], Any]] = (),
    check: bool = True,
) -> Any:
    """The edge program of all methods at once, which shares their weights.

    partitioner: makes what gives operators to delegates, afresh for each method
    preserve:    operators that must not be decomposed
    passes:      rewrite each edge graph before it is partitioned
    check:       whether every operator has to be a core operator
    """
    if job.options.get("weights") == "separate":
        programs = {name: _tagged(program) for name, program in programs.items()}
    with job.progress("lowering to ExecuTorch"), quiet(), unburdened():
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower  # prints when it is imported

        config = EdgeCompileConfig(preserve_ops=list(preserve), _check_ir_validity=check)
        return to_edge_transform_and_lower(
            dict(programs),
            transform_passes=list(passes),
            partitioner={name: partitioner() for name in programs},
            constant_methods=described(job.spec),
            compile_config=config,
        )


def _tagged(program: ExportedProgram) -> ExportedProgram:
    """The program with every constant marked for the data file, also those that a delegate takes."""
    for node in program.graph.nodes:
        if node.op == "placeholder":
            node.meta.setdefault("custom", {})["delegate_constant_tag"] = WEIGHTS
    return program


def described(spec: ModelSpec) -> dict[str, Any]:
    """What the program says of itself as constant methods, for runners without a manifest.

    state_names: separated by spaces, in the order of the inputs after the token ids
    state_fills: the initial value of each tensor's elements
    """
    return {
        "state_names": " ".join(tensor.name for tensor in spec.state),
        "state_fills": [tensor.fill for tensor in spec.state],
        "vocab": spec.vocab,
    }


def written(
    job: Job,
    edge: Any,
    folder: Path,
    *,
    precision: Precision,
    ids: torch.dtype = torch.int64,
    tools: Sequence[str] = (),
    usage: Mapping[str, str] | None = None,
) -> Written:
    """Write model.pte, and model.ptd where weights are separate, and describe both.

    edge:  what `lowered` returned
    ids:   type of the token ids, as in `traced`
    tools: packages beside torch and executorch that took part
    usage: sections of the artifact's README; where None, how an Android app steps it
    """
    sizes = graph.calls(job.prefill)
    taken = {name: coverage(edge.exported_program(name)) for name in sizes}
    with job.progress(f"writing {PROGRAM}"), quiet(), unburdened():
        _save(edge, folder, separate=job.options.get("weights") == "separate")
    named = ports.own(job.spec)
    kind = str(ids).removeprefix("torch.")
    graphs = tuple(
        Graph(size, PROGRAM, named.tokens, kind, named.logits, function=name, coverage=taken[name])
        for name, size in sizes.items()
    )
    versions = {name: version(name) for name in ("torch", "executorch", *tools)}
    if usage is None:
        usage = {"Step it in Kotlin": KOTLIN.format(ids=kind, array=ARRAYS[ids])}
    return Written(graphs, named.state, precision, versions, usage)


def _save(edge: Any, folder: Path, *, separate: bool) -> None:
    from executorch.exir import ExecutorchBackendConfig

    config = ExecutorchBackendConfig(external_constants=(lambda node: WEIGHTS) if separate else False)
    program = edge.to_executorch(config)
    with (folder / PROGRAM).open("wb") as file:
        program.write_to_file(file)
    if separate:
        program.write_tensor_data_to_file(str(folder))


ARRAYS = {torch.int32: "intArrayOf", torch.int64: "longArrayOf"}
KOTLIN = """Inputs and outputs are positional: the token ids, then the state tensors in the order listed below; the
logits, then the new state in the same order. With `org.pytorch:executorch-android`:

```kotlin
val module = Module.load("model.pte")
var state: List<Tensor> = initialState                      // filled as listed below
val ids = Tensor.fromBlob({array}(token), longArrayOf(1))     // {ids}, one id
val out = module.execute("decode", EValue.from(ids), *state.map {{ EValue.from(it) }}.toTypedArray())
val logits = out[0].toTensor().dataAsFloatArray
// what comes out lies in the program's own memory, which the next call overwrites
state = out.drop(1).map {{ Tensor.fromBlob(it.toTensor().dataAsFloatArray, it.toTensor().shape()) }}
```

A method `prefill64` takes 64 ids at once, where it was exported."""
