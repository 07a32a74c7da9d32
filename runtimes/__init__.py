"""Artifact to logits and time: the part that is copied to devices. Knows nothing of exporting or judging."""

from __future__ import annotations

from pathlib import Path

from runtimes import registry
from runtimes.contract import Session
from runtimes.errors import WrongCall
from runtimes.manifest import open_artifact


def open_session(artifact: str | Path, on: str | None = None) -> Session:
    """Open an artifact folder on `on`, e.g. "ort:cpu", "mil:cpu", "pte:cpu", "eager:cpu", "coreml:ane".

    Verifies every hash of the folder first. Without `on`, uses the runtime and device the artifact was made for.
    Raises BadArtifact, WrongCall (the runtime does not read this kind of artifact) or Missing.
    """
    opened = open_artifact(Path(artifact))
    target = opened.manifest.target
    runtime, device = registry.require(on or f"{target.runtime}:{target.device}")
    suffixes = runtime.READS
    if not any(graph.file.endswith(suffixes) for graph in opened.manifest.graphs):
        raise WrongCall(
            f"{on} reads {' '.join(suffixes)} graphs; {opened.folder.name} holds {opened.manifest.graphs[0].file}",
            hint=f"this artifact runs on {target.runtime}",
        )
    return runtime.open_session(opened, device)


__all__ = ["open_session"]
