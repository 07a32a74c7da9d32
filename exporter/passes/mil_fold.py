"""Computes masks beforehand, whose comparisons Core ML's converter does not know; it touches no weights."""

from __future__ import annotations

from torch.export import ExportedProgram

from exporter.passes.edge_fold import constants


def folded(program: ExportedProgram) -> ExportedProgram:
    """The program, changed in place, with an attribute for whatever depends on no input and on no weight."""
    module, known = program.graph_module, constants(program)
    for number, (node, tensor) in enumerate(known.items()):
        if all(user in known for user in node.users):
            continue
        module.register_buffer(name := f"mask_{number}", tensor)
        with program.graph.inserting_before(node):
            kept = program.graph.get_attr(name)
        kept.meta = dict(node.meta)
        node.replace_all_uses_with(kept)
    program.graph.eliminate_dead_code()
    module.recompile()
    return program
