"""Where an ONNX Runtime step spends its time: its profiler's trace, read node by node; it judges nothing.

Nodes nest where control flow runs a graph of its own. Times are cut to whole microseconds each, so that what many short
nodes lost is found as overhead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtimes.profile import Event, Side

RUN, NODE = "model_run", "_kernel_time"


def read(path: Path) -> list[list[Event]]:
    """The events of every run in a trace that ONNX Runtime wrote."""
    trace = json.loads(path.read_text(encoding="utf-8"))
    nodes = [event for event in trace if event["name"].endswith(NODE)]
    runs = [event for event in trace if event["name"] == RUN]
    return [_run(run, [node for node in nodes if run["ts"] <= node["ts"] < _end(run)]) for run in runs]


def _run(run: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> list[Event]:
    found, left = [], float(run["dur"])
    for node, alone in _alone(nodes):
        about = node["args"]
        found.append(Event(about["op_name"], about["provider"], Side.RUNTIME, alone / 1e3))
        left -= alone
    return [*found, Event("between nodes, profiling included", "", Side.OVERHEAD, max(0.0, left) / 1e3)]


def _alone(nodes: Iterable[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], float]]:
    """Each node with its microseconds without the nodes inside it."""
    open_nodes: list[int] = []
    found: list[tuple[Mapping[str, Any], float]] = []
    for node in sorted(nodes, key=lambda node: (node["ts"], -node["dur"])):
        while open_nodes and _end(found[open_nodes[-1]][0]) <= node["ts"]:
            open_nodes.pop()
        if open_nodes:
            outer, alone = found[open_nodes[-1]]
            found[open_nodes[-1]] = outer, alone - node["dur"]
        open_nodes.append(len(found))
        found.append((node, float(node["dur"])))
    return found


def _end(event: Mapping[str, Any]) -> float:
    return float(event["ts"] + event["dur"])
