"""What quantising each matrix alone costs, as a document; which are worth keeping. It runs no model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from runtimes.errors import WrongCall
from validation import documents

SCHEMA = 1
ALL, KEPT = "everything", "everything but what is kept"
LEAST = 0.01
"""Of all KL that matrices cost one by one: what costs less is not worth a line of its own."""


@dataclass(frozen=True)
class Effect:
    """What it costs to quantise one matrix, one layer, or all, the rest being float32.

    name:       "blocks.3.ffn.value", "blocks.3", ALL or KEPT
    kind:       how it is stored; "" for several matrices
    parameters, nbytes: values, and their size as stored, scales included
    kl_mean, kl_p99: KL(float32 || quantised) of a prediction, nats
    perplexity: exp of the mean cross-entropy of a token, in nats
    top1:       fraction of predictions whose likeliest token is the same
    """

    name: str
    kind: str
    parameters: int
    nbytes: int
    kl_mean: float
    kl_p99: float
    perplexity: float
    top1: float


@dataclass(frozen=True)
class Subject:
    """What was measured: two documents of the same subject have the same numbers.

    sha256, text_sha256: of the checkpoint and of the text
    tokens: that were predicted
    tools:  package versions
    """

    model: str
    version: str
    sha256: str
    ln_x_eps: float
    target: str
    precision: str
    text: str
    text_sha256: str
    tokens: int
    tools: dict[str, str]


@dataclass(frozen=True)
class Sensitivity:
    """The document that `sensitivity --json` writes as it goes, and continues.

    says:       what is simulated and what not
    wide:       bytes a value of a matrix that is kept
    grow:       by what part of the quantised size keeping may grow the matrices
    perplexity: in float32
    effects:    in the order they were measured
    keep:       matrices worth keeping, the most worth first; None until all were measured alone
    """

    schema: int
    subject: Subject
    says: str
    wide: int
    grow: float
    perplexity: float = 0.0
    effects: tuple[Effect, ...] = ()
    keep: tuple[str, ...] | None = None

    def find(self, name: str) -> Effect | None:
        """The effect of that name, if it was measured."""
        return next((effect for effect in self.effects if effect.name == name), None)

    @property
    def matrices(self) -> tuple[Effect, ...]:
        """Of single matrices, the dearest first."""
        return tuple(sorted((effect for effect in self.effects if effect.kind), key=lambda each: -each.kl_mean))

    @property
    def layers(self) -> tuple[Effect, ...]:
        """Of whole layers, in their order."""
        return tuple(each for each in self.effects if not each.kind and each.name not in (ALL, KEPT))

    def cost_of_keeping(self, effect: Effect) -> int:
        """Bytes that keeping a matrix adds."""
        return max(1, effect.parameters * self.wide - effect.nbytes)


def recommended(document: Sensitivity) -> tuple[str, ...]:
    """Which matrices to keep: the most KL a byte first, while they fit into `grow` of the quantised size.

    KL of independent small errors adds up, so that what single matrices cost says what keeping several saves.
    """
    matrices = document.matrices
    room, total = document.grow * sum(each.nbytes for each in matrices), sum(each.kl_mean for each in matrices)
    chosen = []
    for each in sorted(matrices, key=lambda each: -each.kl_mean / document.cost_of_keeping(each)):
        if document.cost_of_keeping(each) <= room and each.kl_mean >= LEAST * total > 0:
            chosen.append(each)
            room -= document.cost_of_keeping(each)
    return tuple(each.name for each in sorted(chosen, key=lambda each: -each.kl_mean))


def write(document: Sensitivity, path: Path) -> None:
    """Write it as JSON, atomically."""
    documents.write(document, path)


def read(path: Path) -> Sensitivity:
    """Read a document; raises WrongCall naming the file and the place that does not fit."""
    hint = "make one with `rwkv-export sensitivity --json FILE`"
    return documents.read(Sensitivity, path, schema=SCHEMA, what="a file of sensitivities", hint=hint)


def continued(fresh: Sensitivity, path: Path | None) -> Sensitivity:
    """`fresh` with what the file at `path` already has of the same subject; raises WrongCall for another subject.

    Matrices and layers are taken over in any case, what is kept only where as much room was given.
    """
    if path is None or not path.exists():
        return fresh
    found = read(path)
    if found.subject != fresh.subject:
        raise WrongCall(
            f"{path} has sensitivities of {found.subject.model} as {found.subject.target} {found.subject.precision}, "
            "or of another text or other tools",
            hint="name another file, or remove that one",
        )
    if found.grow == fresh.grow:
        return found
    return replace(fresh, effects=tuple(effect for effect in found.effects if effect.name != KEPT))
