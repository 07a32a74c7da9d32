"""Every value of an ONNX graph as ONNX Runtime computes it, node by node; choices as one token takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.contract import Array, Artifact, Placement
from runtimes.errors import BadArtifact
from runtimes.session import Tensors, explicit_session
from validation.localise.tape import Op

FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
"""Types of values that numpy has too, and that mean something to compare."""
EXTERNAL_DATA = "session.model_external_initializers_file_folder_path"


class OnnxTap:
    """An artifact's graph for one token with every value as an output, nothing fused; raises BadArtifact."""

    whole = True

    def __init__(self, artifact: Artifact) -> None:
        import onnx.inliner

        manifest = artifact.manifest
        self._graph = next(graph for graph in manifest.graphs if graph.tokens == 1)
        self._path = artifact.folder / self._graph.file
        self._state = manifest.state
        self._model = onnx.inliner.inline_local_functions(onnx.load(str(self._path), load_external_data=False))
        self._values: dict[str, Array] = {}
        self._opened: Any = None
        placed = Placement("ort:cpu", "ort:cpu")
        self.session = explicit_session(artifact, {1: self._run}, lambda: placed)

    def begin(self) -> None:
        """Every step replaces the values of the one before."""

    def operations(self) -> Sequence[Op]:
        """The nodes, those of the branch that one token takes in place of a choice."""
        graph = self._model.graph
        stored = {tensor.name: tensor for tensor in graph.initializer}
        stored |= {node.output[0]: _constant(node) for node in graph.node if node.op_type == "Constant"}
        return [self._op(node, stored) for node in graph.node if node.op_type != "Constant"]

    def values(self) -> Mapping[str, Array]:
        """Of the last step, those of floating point."""
        return self._values

    def _op(self, node: Any, stored: Mapping[str, Any]) -> Op:
        weights = tuple(name for name in node.input if name in stored)
        inputs = tuple(name for name in node.input if name and name not in stored)
        return Op(
            kind=node.op_type,
            name=node.name or node.output[0],
            inputs=inputs,
            outputs=tuple(filter(None, node.output)),
            weights=weights,
            constants=lambda: {name: _array(stored[name], self._path.parent) for name in weights},
        )

    def _run(self, tokens: Array, state: Tensors) -> tuple[Array, Tensors]:
        feeds = {tensor.input: value for tensor, value in zip(self._state, state, strict=True)}
        shape = self._leading()
        feeds[self._graph.input] = tokens.astype(self._graph.input_dtype).reshape(shape)
        if self._opened is None:
            self._opened = self._open(feeds)
        names = [port.name for port in self._opened.get_outputs() if port.type in FLOATS]
        found = dict(zip(names, self._opened.run(names, feeds), strict=True))
        self._values = found
        return found[self._graph.output], tuple(found[tensor.output] for tensor in self._state)

    def _leading(self) -> tuple[int, ...]:
        port = next(port for port in self._model.graph.input if port.name == self._graph.input)
        return (1,) * (len(port.type.tensor_type.shape.dim) - 1) + (-1,)

    def _open(self, feeds: Mapping[str, Array]) -> Any:
        """Choices are settled first, outermost first: what they hang on is known once the graph has run."""
        while choices := [node for node in self._model.graph.node if node.op_type == "If"]:
            conditions = list(dict.fromkeys(node.input[0] for node in choices))
            seen = dict(zip(conditions, self._session(conditions).run(conditions, feeds), strict=True))
            settle(self._model.graph, {name: bool(np.all(value)) for name, value in seen.items()})
        produced = [name for node in self._model.graph.node for name in node.output if name]
        return self._session(produced)

    def _session(self, outputs: Sequence[str]) -> Any:
        """The graph with these outputs beside its own."""
        import onnx
        import onnxruntime

        tapped = onnx.ModelProto()
        tapped.CopyFrom(self._model)
        given = {port.name for port in tapped.graph.output}
        tapped.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in outputs if n not in given)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry(EXTERNAL_DATA, str(self._path.parent))
        try:
            return onnxruntime.InferenceSession(tapped.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own untyped family
            raise BadArtifact(f"onnxruntime cannot load {self._path} with all values as outputs: {error}") from error


def settle(graph: Any, taken: Mapping[str, bool]) -> None:
    """Put the nodes of the branch that is taken in place of every choice, in place; `taken` by condition."""
    import onnx

    nodes = []
    for node in graph.node:
        if node.op_type != "If":
            nodes.append(node)
            continue
        wanted = "then_branch" if taken[node.input[0]] else "else_branch"
        branch = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
        own = [name for inner in branch.node for name in inner.output] + [tensor.name for tensor in branch.initializer]
        names = {name: f"{node.name}.{name}" for name in own if name}
        for tensor in branch.initializer:
            kept = graph.initializer.add()
            kept.CopyFrom(tensor)
            kept.name = names[tensor.name]
        for inner in branch.node:
            nodes.append(_renamed(inner, names, node.name))
        for inner, outer in zip(branch.output, node.output, strict=True):
            source = names.get(inner.name, inner.name)
            nodes.append(onnx.helper.make_node("Identity", [source], [outer], name=f"{node.name}.{outer}"))
    del graph.node[:]
    graph.node.extend(nodes)


def _renamed(node: Any, names: Mapping[str, str], scope: str) -> Any:
    """A copy whose own values, and those in graphs it holds, have the given names."""
    copy = type(node)()
    copy.CopyFrom(node)
    copy.name = f"{scope}.{node.name}"
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    for attribute in copy.attribute:
        if attribute.HasField("g"):
            inner = [_renamed(each, names, scope) for each in attribute.g.node]
            del attribute.g.node[:]
            attribute.g.node.extend(inner)
            for port in attribute.g.output:
                port.name = names.get(port.name, port.name)
    return copy


def _constant(node: Any) -> Any:
    """The tensor of a node that is a constant; a number or a list of them becomes one."""
    from onnx import helper, numpy_helper

    value = helper.get_attribute_value(node.attribute[0])
    return value if node.attribute[0].name == "value" else numpy_helper.from_array(np.asarray(value))


def _array(tensor: Any, folder: Path) -> Array:
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor, base_dir=str(folder)), np.float32)
