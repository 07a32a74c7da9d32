"""What an artifact's arithmetic costs on real text: it and its checkpoint predict the same tokens, in lock step.

It moves no bound and times nothing. Logits are compared as they come and never kept: a vocabulary is large.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from exporter.progress import Progress, silent
from runtimes.contract import Array, Artifact, Session
from runtimes.errors import CheckFailed, Missing, WrongCall
from runtimes.tokenizer import open_tokenizer
from validation import judge
from validation.metrics import Prediction, compare_prediction, read_text
from validation.outcome import Bound, Identity, Quality, placed_at
from validation.trace import Logits, beginning

TOKENS = 512
"""Tokens predicted unless told."""


@dataclass(frozen=True)
class Text:
    """What is read, and what it is called in results."""

    name: str
    content: str


@dataclass(frozen=True)
class Passage:
    """The beginning of a text in an artifact's tokens; each of `tokens` but the first is predicted from those before.

    size: UTF-8 bytes of the tokens that are predicted
    """

    name: str
    tokens: tuple[int, ...]
    size: int


def open_text(path: Path | None = None) -> Text:
    """A file of UTF-8 text, or the text bundled for this; raises WrongCall where it cannot be read."""
    from exporter import bundled

    chosen = path or bundled.HELDOUT
    try:
        return Text(chosen.name, chosen.read_bytes().decode("utf-8"))
    except OSError as error:
        raise WrongCall(f"cannot read text {chosen}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise WrongCall(f"{chosen} is not UTF-8 text: byte {error.start}", hint="name a plain text file") from error


def require_tokens(count: int) -> None:
    """Raises WrongCall for nothing to predict."""
    if count < 1:
        raise WrongCall(f"cannot measure quality over {count} tokens", hint="use 1 token or more, better a thousand")


def take_passage(text: Text, artifact: Artifact, count: int) -> Passage:
    """The first tokens of a text, enough to predict `count`.

    Raises Missing where the artifact has no tokenizer or the text does not fit its vocabulary, WrongCall where the
    text is too short.
    """
    require_tokens(count)
    document = artifact.manifest
    if document.tokenizer.kind == "none":
        raise Missing("the artifact has no tokenizer, so that no text can be read with it")
    tokenizer = open_tokenizer(document.tokenizer.kind, artifact.folder)
    tokens = tokenizer.encode(text.content)
    if len(tokens) <= count:
        most = f"{len(tokens) - 1} at most" if len(tokens) > 1 else "it needs two tokens at least"
        raise WrongCall(
            f"{text.name} has {len(tokens)} tokens, too few to predict {count}",
            hint=f"name a longer text, or predict fewer: {most}",
        )
    tokens = tokens[: count + 1]
    if max(tokens) >= document.model.vocab:
        raise Missing(f"{text.name} has token {max(tokens)}, outside this model's vocabulary of {document.model.vocab}")
    return Passage(text.name, tuple(tokens), sum(len(tokenizer.spell(token)) for token in tokens[1:]))


def measure_quality(
    session: Session,
    reference: Session,
    passage: Passage,
    bound: Bound,
    identity: Identity,
    *,
    tuned: Mapping[str, Array] | None = None,
    progress: Progress = silent,
) -> Quality:
    """Step both sessions through a passage, each from its own start with its own state, and judge the mean KL.

    tuned: initial tensors of the artifact that came in a file of their own, see trace.beginning

    Logits that cannot be compared raise CheckFailed naming the token; what a session itself raises passes through.
    """
    expected = _stepped(reference, passage, tuned)
    return measure_recorded(session, expected, passage, bound, identity, progress=progress)


def measure_recorded(
    session: Session,
    expected: Iterable[Logits],
    passage: Passage,
    bound: Bound,
    identity: Identity,
    *,
    progress: Progress = silent,
) -> Quality:
    """As measure_quality, with what the reference predicts after each token of the passage, as far as it was kept."""
    state, predictions = session.initial_state(), list[Prediction]()
    what = f"{identity.artifact} on {identity.requested} reading {passage.name}"
    with progress(what, len(passage.tokens) - 1) as advance:
        for (token, following), golden in zip(pairwise(passage.tokens), expected, strict=False):
            step = session.step(token, state)
            state = step.state
            try:
                predictions.append(compare_prediction(golden, step.logits, following))
            except CheckFailed as failure:
                where = f"at token {len(predictions)} of {passage.name}"
                raise CheckFailed(f"{failure.message}, {where}") from failure
            advance(1)
    reading, placed = read_text(predictions, size=passage.size), session.placement()
    exact = all(prediction.exact for prediction in predictions)
    broken = judge.broken_on_text(reading, bound, passage.name)
    outcome, reasons = judge.verdict(broken, bound, exact=exact, requested=identity.requested, placed=placed)
    return Quality(placed_at(identity, placed), outcome, reasons, passage.name, bound, reading)


def _stepped(reference: Session, passage: Passage, tuned: Mapping[str, Array] | None) -> Iterator[Logits]:
    state = reference.write_state(beginning(reference, tuned))
    for token in passage.tokens[:-1]:
        step = reference.step(token, state)
        state = step.state
        yield step.logits
