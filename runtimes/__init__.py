"""Artifact to logits and time: the part that is copied to devices. Knows nothing of exporting or judging."""

from __future__ import annotations

from pathlib import Path

from runtimes import registry
from runtimes.contract import Artifact, Session, State, Step
from runtimes.errors import BadArtifact, BadCheckpoint, CheckFailed, Missing, RwkvExportError, WrongCall
from runtimes.manifest import Manifest, open_artifact


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
    check_reads(artifact, place)
    return runtime.open_session(artifact, device)


def check_reads(artifact: Artifact, place: str) -> None:
    """Raise WrongCall where the runtime of `place` opens no such graphs, whether it can run on this machine or not."""
    if not reads(artifact.manifest, place):
        endings, graph = registry.load(registry.parse(place)[0]).READS, artifact.manifest.graphs[0]
        raise WrongCall(
            f"{place} reads {' '.join(endings)} graphs; {artifact.folder.name} holds {graph.file}",
            hint=f"this artifact runs on {artifact.manifest.target.runtime}",
        )


def reads(manifest: Manifest, place: str) -> bool:
    """Whether the runtime of `place` opens an artifact's kind of graphs; raises WrongCall for an unknown place."""
    name, _ = registry.parse(place)
    return any(graph.file.endswith(registry.load(name).READS) for graph in manifest.graphs)


__all__ = [
    "Artifact",
    "BadArtifact",
    "BadCheckpoint",
    "CheckFailed",
    "Missing",
    "RwkvExportError",
    "Session",
    "State",
    "Step",
    "WrongCall",
    "open_artifact",
    "open_session",
]
