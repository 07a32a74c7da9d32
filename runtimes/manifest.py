"""manifest.json: what an artifact is, file by file and tensor by tensor; it holds no weights and no results.

Unknown keys are refused, there are no timestamps, and the same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from runtimes import pairing, untrusted
from runtimes.contract import Artifact, TensorSpec
from runtimes.errors import BadArtifact
from runtimes.schema import SchemaError, from_plain, to_plain

SCHEMA = 1
FILE_NAME = "manifest.json"
STATE_TYPES = ("float32", "float16")


@dataclass(frozen=True)
class Model:
    """What was exported; `version` is "4", "5.0", "5.1", "5.2", "6", "7" or "7a"."""

    name: str
    version: str
    layers: int
    width: int
    heads: int
    head_size: int
    vocab: int
    ln_x_eps: float
    parameters: int


@dataclass(frozen=True)
class Source:
    """The checkpoint it came from; `sha256` identifies it, `file` is only its name."""

    file: str
    format: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Target:
    """Where it is meant to run, and the options it was exported with.

    kernel: place that computes the same graphs without the device's rounding, "ort:cpu", where there is one
    """

    name: str
    runtime: str
    device: str
    precision: str
    tolerance: str
    options: Mapping[str, str] = field(default_factory=dict)
    kernel: str | None = None


@dataclass(frozen=True)
class Coverage:
    """What delegates took of one graph, counted in the lowered program; `delegates` is empty where none took anything.

    delegates: calls of each delegate, {"XnnpackBackend": 1}
    inside, outside: operators by name and count, taken by delegates and left to the runtime's own kernels
    macs_inside, macs_outside: multiply-accumulates of one call, of matrix products and convolutions
    weights_inside, weights_outside: bytes of constants
    why: operator left outside -> the reason, of those whose reason is known
    """

    delegates: Mapping[str, int]
    inside: Mapping[str, int]
    outside: Mapping[str, int]
    macs_inside: int
    macs_outside: int
    weights_inside: int
    weights_outside: int
    why: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Lookup:
    """A table outside the graph, (vocab, width), row by row: `file` has nothing but its numbers, little-endian."""

    file: str
    width: int


@dataclass(frozen=True)
class Graph:
    """One entry point taking `tokens` token ids at once.

    file:     relative path of the graph (a file, or a folder such as model.mlpackage); entries may share one
    function: entry point inside the file where it holds several, else None
    input, input_dtype: the token input, of shape (tokens,); (1, tokens) with rwkv-mobile names
    output:   the logits output, (1, vocab), for the last token; (1, 1, vocab) with rwkv-mobile names
    up_to:    any number of token ids from 1 to `tokens` will do
    coverage: what delegates took, in formats that have them
    lookup:   where the token input takes rows of a table, (tokens, width), and not the ids: the table, of `input_dtype`
                 the outputs may then have padding after the logits
    output_rest: further outputs, each (1, n), that go on where `output` ends
    mask:     input of as many ones as there are tokens, then zeros, (tokens,), in the type of the state; where there is
                 one, ids or rows that only fill up follow those of the tokens
    compiled: the same graph as a device's compiler left it, a file that only such devices and their emulators open
    then:     where `file` does not hold the whole: those run after it, in turn; what one gives the next take, by name
    """

    tokens: int
    file: str
    input: str
    input_dtype: str
    output: str
    function: str | None = None
    up_to: bool = False
    coverage: Coverage | None = None
    lookup: Lookup | None = None
    output_rest: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    mask: str | None = None
    compiled: str | None = None


@dataclass(frozen=True)
class StateTensor:
    """One state tensor as the graphs carry it: fields as in TensorSpec, with the port names.

    input, output: graph port names; equal when the runtime holds the state itself (Core ML MLState).
    scale: of the low part of the tensor before it, null of all others: the state is that one plus this times `scale`
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    fill: float
    input: str
    output: str
    scale: float | None = None

    def spec(self) -> TensorSpec:
        """The tensor without its port names."""
        return TensorSpec(self.name, self.shape, self.dtype, self.axes, self.fill, self.scale)


@dataclass(frozen=True)
class Kept:
    """Tensors that stayed in a wider type than the precision says, and why. `tensors` is a name or pattern."""

    tensors: str
    dtype: str
    reason: str


@dataclass(frozen=True)
class Precision:
    """Storage and arithmetic types, e.g. fp16 storage with fp32 arithmetic."""

    weights: str
    compute: str
    kept: tuple[Kept, ...] = ()


@dataclass(frozen=True)
class Tokenizer:
    """kind: "bytes" (id = byte + 1), "world", "pile" or "none"; file is null where the kind needs none."""

    kind: str
    file: str | None = None


@dataclass(frozen=True)
class File:
    """One file of the folder, `path` relative with forward slashes."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The whole document. `initial_state` names an .npz of tuned initial state tensors, or is null."""

    schema: int
    model: Model
    source: Source
    target: Target
    precision: Precision
    graphs: tuple[Graph, ...]
    state: tuple[StateTensor, ...]
    tokenizer: Tokenizer
    files: tuple[File, ...]
    tools: Mapping[str, str]
    initial_state: str | None = None


def write(manifest: Manifest, folder: Path) -> None:
    """Write manifest.json into `folder`."""
    text = json.dumps(to_plain(manifest), indent=2, ensure_ascii=False) + "\n"
    (folder / FILE_NAME).write_text(text, encoding="utf-8")


def find(path: Path) -> list[Path]:
    """`path` if it is an artifact folder, else the artifact folders directly in it; raises BadArtifact for neither."""
    if (path / FILE_NAME).is_file() or not path.is_dir():
        return [path]
    found = _inside(path)
    if not found:
        raise BadArtifact(f"{path} is not an artifact and holds none", hint="make one with `rwkv-export export`")
    return found


def _inside(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if (folder / FILE_NAME).is_file() and folder.name[0] != ".")


def read(folder: Path) -> Manifest:
    """Parse and check `folder`/manifest.json without touching the other files; raises BadArtifact."""
    path = folder / FILE_NAME
    if not path.is_file():
        inside = _inside(folder) if folder.is_dir() else []
        hint = f"one that it holds is {inside[0]}" if inside else "make one with `rwkv-export export`"
        raise BadArtifact(f"{folder} is not an artifact: it has no {FILE_NAME}", hint=hint)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != SCHEMA:
            raise SchemaError(f"schema is {schema!r}, this version reads {SCHEMA}")
        manifest = from_plain(Manifest, document)
    except (SchemaError, ValueError, RecursionError) as error:
        raise BadArtifact(f"{path}: {error}", hint="export the model again with this version") from error
    _check_references(manifest, path)
    untrusted.check(manifest, path)
    return manifest


def _check_references(manifest: Manifest, path: Path) -> None:
    """Every file the manifest speaks of is among its hashed files (a package folder: some file below it)."""
    listed = [f"{file.path}/" for file in manifest.files]
    tables = (graph.lookup.file for graph in manifest.graphs if graph.lookup)
    graphs = (file for graph in manifest.graphs for file in (graph.file, graph.compiled, *graph.then))
    for name in (*graphs, *tables, manifest.tokenizer.file, manifest.initial_state):
        if name is not None and not any(file.startswith(f"{name}/") for file in listed):
            raise BadArtifact(f"{path} speaks of {name!r}, which is not among its files", hint="export the model again")
    for before, tensor in zip((None, *manifest.state), manifest.state, strict=False):
        if tensor.scale is not None and (before is None or not _is_low(tensor, before)):
            raise BadArtifact(f"{path}: state {tensor.name} is no low part of the one before it", hint="export again")
        if tensor.dtype not in STATE_TYPES:
            known = " or ".join(STATE_TYPES)
            raise BadArtifact(f"{path}: state {tensor.name} has type {tensor.dtype!r}, expected {known}")


def _is_low(low: StateTensor, high: StateTensor) -> bool:
    """Whether one follows from the other but for its ports, its fill and its scale."""
    expected = pairing.paired(high.spec())[1]
    return low.spec() == replace(expected, fill=low.fill, scale=low.scale) and 0 < (low.scale or 0) < 1


def open_artifact(folder: Path) -> Artifact:
    """Read the manifest and verify every file's size and SHA-256; raises BadArtifact."""
    manifest = read(folder)
    for file in manifest.files:
        path = folder / file.path
        untrusted.refuse_links(folder, file.path)
        if not path.is_file():
            raise BadArtifact(f"{folder} lacks {file.path}", hint="copy the whole folder, or export again")
        size = path.stat().st_size
        if size != file.bytes:
            raise BadArtifact(f"{path} has {size} bytes, the manifest says {file.bytes}", hint="export again")
        if sha256(path) != file.sha256:
            raise BadArtifact(f"{path} does not match its SHA-256 in the manifest", hint="export again")
    return Artifact(folder, manifest)


def list_files(folder: Path) -> tuple[File, ...]:
    """Every file below `folder` but the manifest, in name order, with sizes and hashes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / FILE_NAME)
    return tuple(File(path.relative_to(folder).as_posix(), path.stat().st_size, sha256(path)) for path in paths)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
