"""Golden traces for a run over several artifacts: recorded when first needed, or read from a file; compares nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from exporter.progress import Progress, silent
from runtimes import manifest
from runtimes.contract import Artifact, Session
from runtimes.errors import Missing, WrongCall
from runtimes.session import stored_initial_state
from validation import trace_file
from validation.quality import Passage
from validation.trace import Trace, choose_tokens, record, spaced

MOST = 1 << 30
"""Bytes that the logits and states of a trace may take in memory; of longer ones, states are kept now and then."""

Find = Callable[[manifest.Source], Path]


class Open(Protocol):
    """Opens a checkpoint as the session that others are compared with."""

    def __call__(self, checkpoint: Path, *, ln_x_eps: float) -> Session: ...


def find_checkpoint(source: manifest.Source) -> Path:
    """Where the checkpoint is on this machine; raises Missing."""
    from exporter import sources

    return sources.find(source)


def open_reference(checkpoint: Path, *, ln_x_eps: float) -> Session:
    """The checkpoint stepped by torch in float32."""
    from exporter.model import reference_session

    return reference_session(checkpoint, ln_x_eps=ln_x_eps)


def same_checkpoint(checkpoint: Path, source: manifest.Source) -> Path:
    """`checkpoint` where it is what `source` says; raises WrongCall where it is another one."""
    from exporter.checkpoint import open_checkpoint

    digest = open_checkpoint(checkpoint).sha256()
    if digest != source.sha256:
        raise WrongCall(
            f"{checkpoint} has sha256 {digest[:12]}..., the artifact was made from {source.file} with "
            f"{source.sha256[:12]}...",
            hint="name the checkpoint it was made from, or export this one",
        )
    return checkpoint


def heldout_text() -> str:
    """Text that the bundled model was not trained on."""
    from exporter import bundled

    return bundled.HELDOUT.read_text(encoding="utf-8")


@dataclass
class Golden:
    """Records and keeps the traces. `find` raises Missing where a checkpoint is not on this machine."""

    steps: int
    seed: int
    find: Find
    open: Open
    text: Callable[[], str] = heldout_text
    progress: Progress = silent
    _kept: dict[tuple[str, float, str | None], Trace] = field(default_factory=dict, init=False)

    def trace(self, artifact: Artifact) -> Trace:
        """The trace an artifact is compared with: its checkpoint, its norm's epsilon, its tuned initial state."""
        document = artifact.manifest
        hashes = {file.path: file.sha256 for file in document.files}
        key = (document.source.sha256, document.model.ln_x_eps, hashes.get(document.initial_state or ""))
        if key not in self._kept:
            tokens = choose_tokens(
                self.steps,
                vocab=document.model.vocab,
                seed=self.seed,
                text=self.text() if document.tokenizer.kind == "bytes" else None,
            )
            with closing(self.reference(artifact)) as session:
                tuned = stored_initial_state(artifact)
                keep = spaced(self.steps, _every(document, self.steps))
                self._kept[key] = record(session, tokens, tuned=tuned, keep=keep, progress=self.progress)
        return self._kept[key]

    def reference(self, artifact: Artifact) -> Session:
        """The checkpoint an artifact was made from, opened."""
        document = artifact.manifest
        return self.open(self.find(document.source), ln_x_eps=document.model.ln_x_eps)


def _every(document: manifest.Manifest, steps: int) -> int:
    """How far apart the steps are whose states and logits are kept, so that all fits into MOST."""
    one = 4 * (document.model.vocab + sum(math.prod(tensor.shape) for tensor in document.state))
    return 1 if one * steps <= MOST else max(2, -(-2 * one * steps // MOST))


class Replay:
    """The trace of one checkpoint from a file, for artifacts that were made from it."""

    def __init__(self, path: Path) -> None:
        """Raises WrongCall for a file that is no trace, or damaged."""
        self._path = path
        self._trace, self.about = trace_file.read(path)

    def trace(self, artifact: Artifact) -> Trace:
        """The trace; raises WrongCall for an artifact of another checkpoint."""
        document, about = artifact.manifest, self.about
        if document.source.sha256 != about.source.sha256:
            raise WrongCall(
                f"{self._path} is a trace of {about.source.file} with sha256 {about.source.sha256[:12]}..., "
                f"the artifact was made from {document.source.file} with {document.source.sha256[:12]}...",
                hint="record one of that checkpoint with `rwkv-export trace`",
            )
        model = document.model
        if (model.vocab, model.ln_x_eps) != (about.vocab, about.ln_x_eps):
            raise WrongCall(
                f"{self._path} was recorded with ln_x eps {about.ln_x_eps:g} and a vocabulary of {about.vocab}, the "
                f"artifact has {model.ln_x_eps:g} and {model.vocab}",
                hint="record one with the `--ln-x-eps` that the artifact was exported with",
            )
        return self._trace

    def passage(self, artifact: Artifact) -> Passage:
        """The text of the trace, to be predicted; raises Missing where it is of random tokens."""
        trace, about = self.trace(artifact), self.about
        if not about.text:
            raise Missing(
                f"{self._path.name} was recorded over random tokens, so that no text can be read with it",
                hint="record one over a text",
            )
        return Passage(f"{about.text}, recorded in {trace.name}", trace.tokens, about.bytes)
