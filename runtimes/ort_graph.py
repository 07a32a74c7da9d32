"""What every ONNX Runtime session here is checked by: its ports against the manifest, its nodes by who took them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from runtimes.errors import BadArtifact
from runtimes.manifest import Graph, Manifest

ASSIGNMENT = "session.record_ep_graph_assignment_info"
"""The session's option without which `nodes` finds none."""


def check_ports(session: Any, graph: Graph, manifest: Manifest) -> None:
    """Raise BadArtifact where the graph's inputs and outputs are not those that the manifest speaks of."""
    taken = [graph.input, *(tensor.input for tensor in manifest.state)]
    given = [graph.output, *(tensor.output for tensor in manifest.state)]
    _same(graph, taken, [port.name for port in session.get_inputs()])
    _same(graph, given, [port.name for port in session.get_outputs()])


def _same(graph: Graph, wanted: Collection[str], found: Collection[str]) -> None:
    if odd := sorted(set(wanted).symmetric_difference(found)):
        raise BadArtifact(f"{graph.file} and the manifest disagree about the port {odd[0]!r}", hint="export again")


def nodes(session: Any, *, apart: str = "") -> Counter[str]:
    """Nodes by execution provider, as ONNX Runtime assigned them; those of the domain `apart` under its name."""
    found: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        found.update(apart if apart and node.domain == apart else part.ep_name for node in part.get_nodes())
    return found
