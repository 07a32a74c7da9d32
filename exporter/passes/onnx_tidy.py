"""Removes from an ONNX graph what tracing left behind: folded constants, dead nodes, notes; changes no arithmetic."""

from __future__ import annotations

import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import common


def tidy(model: ir.Model) -> None:
    """Fold constants and drop what is then unused, in place.

    Not onnxscript's whole optimizer: its rewrite rules find nothing more in a step than a handful of nodes that ONNX
    Runtime fuses itself, and take ten times as long over a prefill graph.
    """
    onnxscript.optimizer.fold_constants(model, should_fold=_knows_all_inputs)
    for clean in (
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.NameFixPass(),
    ):
        clean(model)


def _knows_all_inputs(node: ir.Node) -> bool | None:
    """False for arithmetic on weights: it stays in the graph, because its result may be larger than they are."""
    lazy = any(value is not None and isinstance(value.const_value, ir.LazyTensor) for value in node.inputs)
    return False if lazy else None


def strip(model: ir.Model) -> None:
    """Drop what the tracer noted about our source files: it is most of the file, and says where we were built."""
    for node in model.graph:
        node.metadata_props.clear()
        for output in node.outputs:
            output.metadata_props.clear()
    for outer in (*model.graph.inputs, *model.graph.initializers.values()):
        outer.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
