"""Results: named outcomes; parity, quality and latency rows; the JSON document that holds them. Judges nothing."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from runtimes.contract import Placement
from runtimes.errors import WrongCall
from runtimes.manifest import Coverage
from runtimes.profile import Profile, quickest
from runtimes.schema import to_plain
from validation import documents
from validation.lint.findings import Lint

SCHEMA = 1
LINES = ".jsonl"
"""How the name ends of a file with a document a line: the rows of a run that is under way, or was stopped."""


class Outcome(StrEnum):
    """What became of one row. Only PASS counts as proof.

    PASS        ran where it was asked to, within tolerance
    FAIL        ran, outside tolerance
    FALLBACK    ran within tolerance, but not where it was asked to
    SUSPICIOUS  an fp16 artifact with an error of exactly zero: probably the reference compared with itself
    COMPILED    a delegate's own compiler made it, and this machine cannot run it
    MISSING     this machine lacks the runtime or device
    ERROR       loading or running raised
    """

    PASS = "pass"
    FAIL = "fail"
    FALLBACK = "fallback"
    SUSPICIOUS = "suspicious"
    COMPILED = "compiled"
    MISSING = "missing"
    ERROR = "error"


@dataclass(frozen=True)
class Reading:
    """One way of comparing target and reference over a token sequence; lists hold one entry a step.

    max_abs:       largest absolute logit error
    rel_std:       max_abs / standard deviation of the reference's logits at that step
    sqnr_db:       10 log10(sum ref^2 / sum error^2); null where the error is zero
    kl:            KL(reference || target) over softmax, nats
    top1, top10:   fraction of steps with equal greedy token; mean overlap of the ten likeliest
    first_divergent: first step whose greedy token differs, or null
    state_max_abs: state tensor -> largest absolute error over all steps
    state_rel:     state tensor -> that error / largest absolute reference value
    at:            steps that were compared; None for all, from 0
    """

    max_abs: tuple[float, ...]
    rel_std: tuple[float, ...]
    sqnr_db: tuple[float | None, ...]
    kl: tuple[float, ...]
    top1: float
    top10: float
    first_divergent: int | None
    state_max_abs: Mapping[str, float]
    state_rel: Mapping[str, float]
    at: tuple[int, ...] | None = None

    @property
    def worst(self) -> float:
        """The largest absolute logit error of any step."""
        return max(self.max_abs)


@dataclass(frozen=True)
class Bound:
    """A row of tolerances.toml: what every comparison of an artifact must keep, and why these numbers.

    rounds:  the arithmetic cannot be exact, so that an error of zero is suspicious
    text_kl: largest mean KL over real text; None for arithmetic close enough for `kl` to say it all
    itself:  the row for comparisons of an artifact with itself, such as prefill with stepping; None for this one
    kernel:  the row for comparisons with the same graph in a place that does not round as the device does, where the
             artifact names one; None where that says no more than the comparison with the checkpoint
    """

    name: str
    max_abs: float
    kl: float
    top1: float
    state_rel: float
    reason: str
    rounds: bool = False
    text_kl: float | None = None
    itself: str | None = None
    kernel: str | None = None

    @property
    def mean_kl(self) -> float:
        """What the mean KL over a text must keep: what holds at every step holds for the mean too."""
        return self.kl if self.text_kl is None else self.text_kl


@dataclass(frozen=True)
class Identity:
    """Which artifact on which place a row speaks of; where nothing ran, `observed` and `evidence` are "".

    evidence: "run", "emulated" or "interpreted", as in runtimes.contract.Placement
    coverage: what delegates took of the graph for one token, as the manifest has it
    digest:   SHA-256 of the artifact's manifest.json, which has that of every other file; "" in earlier results
    """

    artifact: str
    model: str
    version: str
    target: str
    precision: str
    requested: str
    observed: str
    nodes: Mapping[str, int] = field(default_factory=dict)
    evidence: str = ""
    coverage: Coverage | None = None
    digest: str = ""


def placed_at(identity: Identity, placement: Placement) -> Identity:
    """The identity of a row that ran there."""
    nodes = dict(placement.nodes)
    return replace(identity, observed=placement.observed, nodes=nodes, evidence=placement.evidence)


@dataclass(frozen=True)
class Hops:
    """An artifact's error in two parts, told apart by a place that computes the same graph without a device's rounding.

    place:   that place, "ort:cpu"
    bound:   what both kernel readings must keep
    kernel_local, kernel: the artifact where it runs against the same graph there, as `local` and `free` of Parity
    quality: the same graph there against the checkpoint, free-running: what quantising costs
    """

    place: str
    bound: Bound
    kernel_local: Reading
    kernel: Reading
    quality: Reading


@dataclass(frozen=True)
class Drift:
    """How the error of a free-running reading goes with the step, and how far the state has grown.

    early, late: mean of the largest logit error over the first and the last eighth of the steps
    slope, low, high: logits per 1000 steps, and the 95 % interval of that
    shape:  "flat", "falling", "linear" or "logarithmic": which of the last two fits a growing error better
    tensor: state tensor whose norm grew by the largest factor since a quarter of the run
    norm, norm_early: its norm in the artifact, at the end and then
    reference_norm:   its norm in the checkpoint at the end
    says:   all that as a sentence
    """

    steps: int
    early: float
    late: float
    slope: float
    low: float
    high: float
    shape: str
    tensor: str
    norm_early: float
    norm: float
    reference_norm: float
    says: str


@dataclass(frozen=True)
class Parity:
    """One artifact compared with the checkpoint it was made from.

    local:   the reference's state is written before every step (measures the kernel)
    free:    the target keeps its own state from the start (measures drift)
    prefill: chunking ("1", "64" a graph's size, "uneven") -> largest absolute logit or state error against stepping
    reasons: each broken bound as a sentence; for MISSING and ERROR, why
    hops:    the error in two parts, of quantised artifacts that name a place to tell them apart
    compared: what was compared with and what not, where that was a file or not every step and state was; else ""
    drift:   of `free`, where there are steps enough to tell
    """

    identity: Identity
    outcome: Outcome
    reasons: tuple[str, ...]
    steps: int
    bound: Bound | None = None
    local: Reading | None = None
    free: Reading | None = None
    prefill: Mapping[str, float] = field(default_factory=dict)
    hops: Hops | None = None
    compared: str = ""
    drift: Drift | None = None


@dataclass(frozen=True)
class TextReading:
    """How artifact and reference predict a text, each token from all before it, states carried from the start.

    tokens:     predicted; bytes: their UTF-8 bytes
    kl_mean, kl_p99: KL(reference || artifact) of a prediction, nats; its mean and 99th percentile
    perplexity, reference_perplexity: exp of the mean cross-entropy of a token, in nats
    top1:       fraction of predictions whose likeliest token is the reference's
    top5:       mean share of the reference's five likeliest tokens that are among the artifact's
    """

    tokens: int
    bytes: int
    kl_mean: float
    kl_p99: float
    perplexity: float
    reference_perplexity: float
    top1: float
    top5: float | None = None

    @property
    def bits_per_byte(self) -> float:
        """The artifact's cross-entropy by byte, which compares models of different tokenizers; inf for no bytes, and
        for a perplexity that none can be."""
        possible = self.bytes and not self.perplexity <= 0
        return math.log2(self.perplexity) * self.tokens / self.bytes if possible else math.inf


@dataclass(frozen=True)
class Task:
    """How an artifact and its checkpoint answer a file of questions.

    task:     "lambada" or "mmlu"
    accuracy, reference_accuracy: share of examples answered right, by the artifact and by the checkpoint
    error:    standard error of `accuracy` that comes of taking so few examples; None for one
    same:     share of examples that both answer alike, rightly or not
    perplexity, reference_perplexity: exp of the mean loss of the right last word, in nats; None for mmlu
    """

    task: str
    file: str
    sha256: str
    examples: int
    accuracy: float
    error: float | None
    reference_accuracy: float
    same: float
    perplexity: float | None = None
    reference_perplexity: float | None = None


@dataclass(frozen=True)
class Quality:
    """What an artifact's arithmetic costs on real text, against the checkpoint it was made from.

    text: name of the text's file
    weight_bytes: all graphs with their weights; checkpoint_bytes: the file they were made from
    tasks: files of questions, where some were named
    """

    identity: Identity
    outcome: Outcome
    reasons: tuple[str, ...]
    text: str
    bound: Bound | None = None
    reading: TextReading | None = None
    weight_bytes: int = 0
    checkpoint_bytes: int = 0
    tasks: tuple[Task, ...] = ()


@dataclass(frozen=True)
class Samples:
    """Raw wall times in seconds with their summary in milliseconds; mad is the median absolute deviation.

    tokens: of one sample
    """

    seconds: tuple[float, ...]
    median_ms: float
    p90_ms: float
    p99_ms: float
    mad_ms: float
    min_ms: float
    tokens: int

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of the median sample; None where there is no median."""
        return 1000 * self.tokens / self.median_ms if self.median_ms > 0 else None


@dataclass(frozen=True)
class Method:
    """How decode samples came about: a closed loop, where a token is asked for once the one before it is there.

    warm_up_steps: decoded before the first sample; settled: whether their times no longer changed by then
    wall_s:  of the whole loop; what it has beyond the sum of the samples is the harness between calls
    clock_step_s, clock_read_s: the least difference this machine's clock tells; what reading it takes
    stolen:  share of its processor time that a virtual machine's host gave to others meanwhile; None where untold
    """

    warm_up_steps: int
    settled: bool
    wall_s: float
    clock_step_s: float
    clock_read_s: float
    stolen: float | None = None


@dataclass(frozen=True)
class Energy:
    """What a decoded token cost; joules is None where no meter told, and `reason` says why."""

    joules: float | None = None
    source: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Traffic:
    """What a decoded token reads from memory, beside the fastest that this machine was seen to read.

    bytes_per_token:  weights without the embedding, of which a token reads a row, and the state
    limit_gb_per_s: with as many `threads`
    """

    bytes_per_token: int
    limit_gb_per_s: float
    threads: int


@dataclass(frozen=True)
class Latency:
    """One artifact timed in one place.

    load_s, first_token_s: once each, apart from the rest
    decode:  one sample a generated token
    prefill: one sample a whole prompt of `prefill.tokens` tokens
    weight_bytes: all graphs with their weights; state_bytes: one state
    rss_bytes: largest resident size of the process seen between calls
    warnings: diagnoses as sentences with advice
    profile: where the time of a decode step goes, where that was asked for; measured apart from the samples
    method, energy, traffic: of decode; None in results of earlier versions, traffic also off this machine's CPU
    """

    identity: Identity
    outcome: Outcome
    reasons: tuple[str, ...]
    load_s: float = 0.0
    first_token_s: float = 0.0
    decode: Samples | None = None
    prefill: Samples | None = None
    weight_bytes: int = 0
    state_bytes: int = 0
    rss_bytes: int = 0
    warnings: tuple[str, ...] = ()
    profile: Profile | None = None
    method: Method | None = None
    energy: Energy | None = None
    traffic: Traffic | None = None

    @property
    def bandwidth(self) -> float | None:
        """Share of the memory bandwidth that decode takes at its median; above 1 where caches hold the weights."""
        if not self.traffic or not self.decode or self.decode.median_ms <= 0:
            return None
        return self.traffic.bytes_per_token / (self.decode.median_ms * 1e6) / self.traffic.limit_gb_per_s

    @property
    def harness(self) -> float | None:
        """Share of the decode loop that passed between the timed calls."""
        if not self.method or not self.decode or self.method.wall_s <= 0:
            return None
        return max(0.0, 1 - sum(self.decode.seconds) / self.method.wall_s)

    @property
    def slowdown(self) -> float | None:
        """How many times as long a step took while it was profiled, of the quickest each; None if unknown."""
        if not self.profile or not self.decode:
            return None
        alone = 1000 * statistics.median(quickest(self.decode.seconds, float))
        return self.profile.step_ms / alone if alone > 0 else None


@dataclass(frozen=True)
class Machine:
    """Where the results were made. Unknown facts are empty, never guessed.

    name: what its owner calls it, where several machines are measured; else ""
    """

    system: str
    cpu: str
    cores: int
    memory_bytes: int
    governor: str
    python: str
    packages: Mapping[str, str]
    name: str = ""


@dataclass(frozen=True)
class Results:
    """The document `validate --json` and `bench --json` write and `report` and `compare` read.

    made: when, as ISO date and time in UTC, "2026-11-22T09:30:00Z"; "" where that is not known
    """

    schema: int
    machine: Machine
    parity: tuple[Parity, ...] = ()
    latency: tuple[Latency, ...] = ()
    quality: tuple[Quality, ...] = ()
    lint: tuple[Lint, ...] = ()
    made: str = ""


def collected(rows: Iterable[Parity | Latency | Quality], machine: Machine, made: str = "") -> Results:
    """A document of rows of one machine, each kind in its order."""
    kinds: dict[type, list[Any]] = {Parity: [], Latency: [], Quality: []}
    for row in rows:
        kinds[type(row)].append(row)
    parity, latency, quality = map(tuple, kinds.values())
    return Results(SCHEMA, machine, parity, latency, quality, made=made)


def by_machine(documents: Iterable[Results]) -> list[Results]:
    """One document for each machine, machines and rows in order of appearance."""
    found: dict[str, Results] = {}
    for document in documents:
        key = json.dumps(to_plain(document.machine))
        old = found.get(key, replace(document, parity=(), latency=(), quality=(), lint=()))
        found[key] = replace(
            old,
            parity=old.parity + document.parity,
            latency=old.latency + document.latency,
            quality=old.quality + document.quality,
            lint=old.lint + document.lint,
        )
    return list(found.values())


def write(results: Results, path: Path) -> None:
    """Write results as JSON, atomically."""
    documents.write(results, path)


def read(path: Path) -> Results:
    """Read a results document, or the rows that a stopped run left; raises WrongCall naming what does not fit."""
    about: dict[str, Any] = {"schema": SCHEMA, "what": "a results file", "hint": "make one with `--json FILE`"}
    if path.suffix != LINES:
        return documents.read(Results, path, **about)
    found = by_machine(documents.read_lines(Results, path, **about))
    if len(found) != 1:
        raise WrongCall(f"{path} has rows of {len(found)} machines, expected those of one", hint=about["hint"])
    return found[0]
