"""Artifact to logits and time: the part that is copied to devices. Knows nothing of exporting or judging."""

from __future__ import annotations

from pathlib import Path

from runtimes import registry
from runtimes.contract import Artifact, Session
from runtimes.errors import WrongCall
from runtimes.manifest import open_artifact


def open_session(artifact: str | Path, on: str | None = None) -> Session:
    """Open an artifact folder on `on`, e.g. "ort:cpu", "mil:cpu", "pte:cpu", "eager:cpu", "coreml:ane".

    Verifies every hash of the folder first. Without `on`, uses the runtime and device the artifact was made for.
    Raises BadArtifact, WrongCall (the runtime does not read this kind of artifact) or Missing.
    """
    opened = open_artifact(Path(artifact))
    target = opened.manifest.target
    return open_on(opened, on or f"{target.runtime}:{target.device}")


def open_on(artifact: Artifact, place: str) -> Session:
    """The second half of open_session: an artifact that is verified already, opened on `place`."""
    runtime, device = registry.require(place)
    graphs = artifact.manifest.graphs
    if not any(graph.file.endswith(runtime.READS) for graph in graphs):
        raise WrongCall(
            f"{place} reads {' '.join(runtime.READS)} graphs; {artifact.folder.name} holds {graphs[0].file}",
            hint=f"this artifact runs on {artifact.manifest.target.runtime}",
        )
    return runtime.open_session(artifact, device)


__all__ = ["open_on", "open_session"]
