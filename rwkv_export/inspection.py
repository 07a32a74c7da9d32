"""What a file or folder is, as data and as text; only an audit executes anything, and nothing is judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from exporter.progress import Progress, silent
from runtimes import manifest
from runtimes.contract import TensorSpec
from runtimes.errors import WrongCall
from runtimes.manifest import Manifest
from runtimes.tokenizer import kind_for
from rwkv_export import findings, output

if TYPE_CHECKING:
    from validation.fp16_risks import Audit


@dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint: where it is, what model it holds, and the recurrent state that model carries.

    tuned: names of the state tensors that start from tuned values
    """

    path: str
    format: str
    bytes: int
    sha256: str
    model: manifest.Model
    tokenizer: str
    state_bytes: int
    state: tuple[TensorSpec, ...]
    tuned: tuple[str, ...]


@dataclass(frozen=True)
class ArtifactFacts:
    """An artifact whose hashes were verified."""

    path: str
    bytes: int
    manifest: Manifest


Facts = CheckpointFacts | ArtifactFacts


def inspect(path: Path, progress: Progress = silent) -> Facts:
    """Read a checkpoint's header and shapes, or verify an artifact folder; raises WrongCall or Missing."""
    with progress(f"reading {path}"):
        return _facts(path)


def audit(path: Path, text: Path | None, tokens: int, progress: Progress = silent) -> Audit:
    """What of a checkpoint float16 cannot hold; raises WrongCall or Missing."""
    if (path / manifest.FILE_NAME).is_file():
        raise WrongCall(
            f"{path} is an artifact: --fp16 steps a checkpoint", hint="name the checkpoint it was made from"
        )
    from exporter.model import open_model
    from validation import fp16_audit
    from validation.quality import open_text

    return fp16_audit.audit(open_model(path), open_text(text), tokens=tokens, progress=progress)


def _facts(path: Path) -> Facts:
    if (path / manifest.FILE_NAME).is_file():
        opened = manifest.open_artifact(path).manifest
        return ArtifactFacts(str(path), sum(file.bytes for file in opened.files), opened)
    from exporter.model import open_model

    model = open_model(path)
    source, spec = model.checkpoint.source(), model.spec
    return CheckpointFacts(
        path=str(path),
        format=source.format,
        bytes=source.bytes,
        sha256=source.sha256,
        model=model.facts(),
        tokenizer=kind_for(spec.vocab),
        state_bytes=sum(tensor.nbytes for tensor in spec.state),
        state=spec.state,
        tuned=tuple(model.initial),
    )


def deliver(paths: Sequence[Path], *, json: bool) -> None:
    """The paths, one a line; as JSON, what each is."""
    if json:
        output.print_json([inspect(path) for path in paths])
    else:
        print(*paths, sep="\n")


def show(facts: Facts | Audit) -> None:
    """The facts as a table of names and values on stdout, or what an audit found."""
    if not isinstance(facts, CheckpointFacts | ArtifactFacts):
        findings.print_audit(facts)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    lines = _artifact_lines(facts) if isinstance(facts, ArtifactFacts) else _checkpoint_lines(facts)
    for name, value in lines:
        table.add_row(name, value)
    output.stdout().print(table)


def _checkpoint_lines(facts: CheckpointFacts) -> Iterator[tuple[str, str]]:
    yield "checkpoint", facts.path
    model = facts.model
    shape = f"{model.layers} layers, width {model.width}, {model.heads} heads of {model.head_size}"
    yield "model", f"RWKV-{model.version}, {shape}"
    yield "parameters", f"{model.parameters:,}"
    yield "vocabulary", f"{model.vocab:,} (tokenizer: {facts.tokenizer})"
    yield "ln_x eps", f"{model.ln_x_eps:g}"
    types = ", ".join(sorted({tensor.dtype for tensor in facts.state}))
    yield "state", f"{len(facts.state)} tensors, {facts.state_bytes:,} bytes in {types}"
    for tensor in facts.state[: len(facts.state) // model.layers]:
        yield "", f"{tensor.name} {tensor.shape} {'/'.join(tensor.axes)}"
    if facts.tuned:
        yield "tuned state", ", ".join(facts.tuned)
    yield "file", f"{facts.format}, {facts.bytes:,} bytes"
    yield "sha256", facts.sha256


def _artifact_lines(facts: ArtifactFacts) -> Iterator[tuple[str, str]]:
    document = facts.manifest
    model, target, precision = document.model, document.target, document.precision
    yield "artifact", facts.path
    shape = f"{model.layers} layers, width {model.width}, {model.parameters:,} parameters"
    yield "model", f"{model.name}: RWKV-{model.version}, {shape}"
    yield "made from", f"{document.source.file} ({document.source.bytes:,} bytes, sha256 {document.source.sha256})"
    yield "target", f"{target.name}, made for {target.runtime}:{target.device}"
    yield "options", ", ".join(f"{name}={value}" for name, value in target.options.items()) or "none"
    yield "precision", f"{target.precision}: weights {precision.weights}, arithmetic {precision.compute}"
    for kept in precision.kept:
        yield "", f"{kept.tensors} stays {kept.dtype}: {kept.reason}"
    for graph in document.graphs:
        inside = f" function {graph.function}" if graph.function else ""
        tokens = f"{graph.tokens} token{'s' * (graph.tokens > 1)} a call"
        yield "graph", f"{graph.file}{inside}: {tokens}, {graph.input} -> {graph.output}"
    state = [tensor.spec() for tensor in document.state]
    yield "state", f"{len(state)} tensors, {sum(tensor.nbytes for tensor in state):,} bytes"
    yield "tokenizer", document.tokenizer.kind
    for file in document.files:
        yield "file", f"{file.path}, {file.bytes:,} bytes, verified"
    yield "made with", ", ".join(f"{name} {version}" for name, version in document.tools.items())
