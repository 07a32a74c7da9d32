"""LiteRT's interpreter on a processor: opens .tflite files with explicit state, here or in its environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from runtimes import litert, threads
from runtimes.agent.session import MODULE, AgentSession
from runtimes.contract import Array, Artifact, Placement, Session
from runtimes.errors import BadArtifact
from runtimes.manifest import Graph, Manifest
from runtimes.session import Run, Tensors, explicit_session

READS = (".tflite",)
DEVICES = ("cpu",)

DELEGATE = "DELEGATE"
"""What the interpreter calls a node that stands for those that XNNPACK took; it applies no other by itself."""


def missing(device: str) -> str | None:
    """Whether the interpreter is installed here, or its environment set up."""
    reason = litert.missing(litert.INTERPRETER)
    return reason and f"{reason} or `pip install ai-edge-litert`"


def open_session(artifact: Artifact, device: str) -> Session:
    """Load every file of the artifact; raises BadArtifact.

    Where the interpreter is not importable, the session is one in the environment that has it.
    """
    place = f"litert:{device}"
    if not find_spec(litert.INTERPRETER):
        command, env = litert.process(litert.INTERPRETER, MODULE)
        return AgentSession(command, folder=str(artifact.folder.resolve()), place=place, env=env)
    manifest = artifact.manifest
    loaded = {file: _loaded(artifact, file) for file in {graph.file for graph in manifest.graphs}}
    runs = {graph.tokens: _run(loaded[graph.file], graph, manifest) for graph in manifest.graphs}
    placement = Placement(place, place, placed(loaded[manifest.graphs[0].file]._get_ops_details()))
    return explicit_session(artifact, runs, lambda: placement)


def _loaded(artifact: Artifact, file: str) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    path = artifact.folder / file
    try:
        interpreter = Interpreter(model_path=str(path), num_threads=threads.requested() or None)
        interpreter.allocate_tensors()
    except Exception as error:  # ValueError, RuntimeError
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise BadArtifact(f"LiteRT cannot load {path}: {said[0]}", hint="export again") from error
    return interpreter


def _run(interpreter: Any, graph: Graph, manifest: Manifest) -> Run:
    name, signatures = graph.function or "", interpreter.get_signature_list()
    if name not in signatures:
        raise BadArtifact(f"{graph.file} has no signature {name!r}", hint="export again")
    signature = interpreter.get_signature_runner(name)
    inputs, outputs = signature.get_input_details(), signature.get_output_details()
    floats = np.dtype(np.float32)
    taken = {tensor.input: (tensor.shape, floats) for tensor in manifest.state}
    made = {tensor.output: (tensor.shape, floats) for tensor in manifest.state}
    _check(graph, taken | {graph.input: ((graph.tokens,), np.dtype(graph.input_dtype))}, inputs)
    _check(graph, made | {graph.output: ((1, manifest.model.vocab), floats)}, outputs)

    def run(tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        given = dict(zip(taken, state, strict=True)) | {graph.input: tokens.astype(graph.input_dtype)}
        found = signature(**given)
        return found[graph.output], tuple(found[name] for name in made)

    return run


def _check(graph: Graph, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise BadArtifact naming the first port of another name, shape or type than the manifest's."""
    has = {name: (tuple(map(int, port["shape"])), np.dtype(port["dtype"])) for name, port in found.items()}
    for name in sorted({*wanted, *has}):
        if wanted.get(name) != has.get(name):
            raise BadArtifact(f"{graph.file} and the manifest disagree about the port {name!r}", hint="export again")


def placed(operators: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Where the operators of a loaded graph run, {"XNNPACK": 240, "EMBEDDING_LOOKUP": 1}.

    The interpreter lists those that a delegate took and the delegate too: its own are those between its inputs and its
    outputs.

    operators: each with its `index`, `op_name`, and the numbers of its `inputs` and `outputs`
    """
    listed = list(operators)
    plain = [operator for operator in listed if operator["op_name"] != DELEGATE]
    maker = {int(tensor): operator for operator in plain for tensor in operator["outputs"]}
    inside: set[int] = set()
    for delegate in (operator for operator in listed if operator["op_name"] == DELEGATE):
        border, left = set(map(int, delegate["inputs"])), list(map(int, delegate["outputs"]))
        while left:
            tensor = left.pop()
            operator = maker.get(tensor)
            if tensor not in border and operator is not None and operator["index"] not in inside:
                inside.add(operator["index"])
                left += map(int, operator["inputs"])
    beside = Counter(operator["op_name"] for operator in plain if operator["index"] not in inside)
    return {"XNNPACK": len(inside)} | dict(beside) if inside else dict(beside)
