"""What a contributor implements: a model version (exporter/models) or a target (exporter/targets)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch

from exporter.progress import Progress
from runtimes.contract import TensorSpec
from runtimes.manifest import Graph, Precision, StateTensor

Weights = Mapping[str, torch.Tensor]
"""BlinkDL tensor names to tensors, read (and mapped from disk) when looked up."""


@dataclass(frozen=True)
class Spelling:
    """How the primitives are written for one compiler; every spelling computes the same function.

    norm:      "layer_norm" one fused op; "linear" means taken by a matmul with a constant row (XNNPACK)
    head_norm: the same choice for the group norm over heads; "layer_norm_affine" adds explicit ones and zeros (QNN)
    reduce:    sums over the last axis and over a block's tokens: "sum", or "linear" as above
    contract:  matrix times vector: "matmul", "multiply" and reduce, or "row", a matmul of the vector as a row, which
               leaves no axis of size 1 last, and outer products by broadcasting
    l2_eps:    added to the squared norm; 1e-12 vanishes in fp16, where 1e-7 is the smallest that helps
    block:     tokens, two or more, whose recurrence is solved at once in prefill; products in v7 reach e^(0.61 block)
               times what they multiply before they are masked, so that fp16 arithmetic needs 8
    """

    norm: Literal["layer_norm", "linear"] = "layer_norm"
    head_norm: Literal["layer_norm", "layer_norm_affine", "linear"] = "layer_norm"
    reduce: Literal["sum", "linear"] = "sum"
    contract: Literal["matmul", "multiply", "row"] = "matmul"
    l2_eps: float = 1e-12
    block: int = 32


@dataclass(frozen=True)
class Dimensions:
    """The free sizes of a model; `ranks` are the LoRA ranks by the version's own letters."""

    layers: int
    width: int
    head_size: int
    ffn: int
    vocab: int
    ranks: Mapping[str, int] = field(default_factory=dict)


Fill = Callable[[torch.Generator, tuple[int, ...]], torch.Tensor]
"""Random initial values of a shape, float32, drawn from the generator."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint: its shape and how training initialises it.

    optional: it may be absent
    ignored:  it may be present in any shape, and is never read
    official: official checkpoints have it; those that `synth` makes have these only
    """

    shape: tuple[int, ...]
    fill: Fill
    optional: bool = False
    ignored: bool = False
    official: bool = True


Layout = Mapping[str, Entry]
"""Every tensor of a model by BlinkDL name: what a checkpoint is checked against and what `synth` makes."""


@dataclass(frozen=True)
class ModelSpec:
    """What a checkpoint is, read from its tensors' shapes.

    version: one of its file's VERSIONS, such as "5.2"
    state:   in graph order, layer by layer
    """

    version: str
    layers: int
    width: int
    heads: int
    head_size: int
    vocab: int
    ln_x_eps: float
    state: tuple[TensorSpec, ...]


class Version(Protocol):
    """A module exporter/models/v7.py; it knows no target. VERSIONS: the version strings it covers."""

    VERSIONS: tuple[str, ...]

    def matches(self, names: Collection[str]) -> str | None:
        """Which of VERSIONS these tensor names are, or None."""

    def dimensions(self, version: str, *, layers: int, width: int, head_size: int, vocab: int) -> Dimensions:
        """The sizes official training uses at this width (ffn width, LoRA ranks), for random checkpoints."""

    def layout(self, version: str, dimensions: Dimensions) -> Layout:
        """Every tensor a checkpoint of these dimensions has."""

    def spec(self, version: str, weights: Weights, ln_x_eps: float) -> ModelSpec:
        """Dimensions from the shapes; raises BadCheckpoint naming the tensor that does not fit the layout."""

    def build(self, spec: ModelSpec, weights: Weights, spelling: Spelling) -> torch.nn.Module:
        """A pure module (tokens[T], *state) -> (logits[1, V], *state), parameters on the meta device.

        `exporter.models.parameters.recipes(module)` says how each parameter is computed from `weights`.
        """


@dataclass(frozen=True)
class Option:
    """A choice a target offers, set by `-O name=value`.

    values: what it can be; empty where it is free text
    read:   free text as the manifest has it, which names no file of this machine; raises WrongCall
    """

    name: str
    values: tuple[str, ...]
    default: str
    help: str
    read: Callable[[str], str] = str


@dataclass(frozen=True)
class Target:
    """What is true of one place a model can run; data, no code.

    name:       "coreml"
    summary:    one line for people
    spelling:   how its compiler wants the primitives written
    options:    choices set by `-O`
    runtime:    the file of runtimes/backends that opens it
    device:     that runtime's device
    precisions: what -p accepts, the default first -> row of validation/tolerances.toml it is held to
    prefill:    whether fixed-length graphs of several tokens can be written beside the step
    also_runs:  other "runtime:device" places that open the same artifact
    kernel:     the one of those, or of others, that computes the same graphs exactly, so that what the device's kernels
                cost can be told from what quantising does
    calibrated: precisions that find ranges on a text
    """

    name: str
    summary: str
    runtime: str
    device: str
    precisions: Mapping[str, str]
    spelling: Spelling = Spelling()
    options: tuple[Option, ...] = ()
    prefill: bool = False
    also_runs: tuple[str, ...] = ()
    kernel: str | None = None
    calibrated: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """One export as a target file sees it.

    model:   the step module, its parameters on the meta device (exporter.models.parameters gives them values)
    prefill: graph sizes wanted beside 1
    encode:  text to the model's token ids; raises WrongCall or Missing without a tokenizer
    text:    what to calibrate on; None for the bundled text
    """

    target: Target
    precision: str
    options: Mapping[str, str]
    prefill: tuple[int, ...]
    spec: ModelSpec
    model: torch.nn.Module
    encode: Callable[[str], Sequence[int]]
    progress: Progress
    text: str | None = None


@dataclass(frozen=True)
class Written:
    """What a target file left in the folder.

    usage: extra sections of the artifact's README, title -> Markdown
    """

    graphs: tuple[Graph, ...]
    state: tuple[StateTensor, ...]
    precision: Precision
    tools: Mapping[str, str]
    usage: Mapping[str, str] = field(default_factory=dict)


class TargetFile(Protocol):
    """A module exporter/targets/coreml.py; it knows no model version."""

    TARGETS: tuple[Target, ...]

    def missing(self) -> str | None:
        """Why this machine cannot export these targets, as a sentence, or None."""

    def refuse(self, spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
        """Raise WrongCall for choices that are each possible but not together, or not with this model."""

    def export(self, job: Job, folder: Path) -> Written:
        """Write graph files into `folder` (empty, temporary) and describe them."""
