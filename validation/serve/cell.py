"""One artifact in one place of a browser: timed, compared with its checkpoint, read a text; rows as validate's are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace

from exporter.progress import Progress
from runtimes.contract import Artifact
from runtimes.errors import CheckFailed, Missing
from runtimes.session import stored_initial_state
from validation import judge
from validation.golden import Golden
from validation.outcome import Bound, Identity, Latency, Outcome, Parity, Quality, placed_at
from validation.parity import check
from validation.quality import Text, measure_quality, take_passage
from validation.runner import NOT_LATENCY, Case, sentence, weight_bytes
from validation.serve.line import Line
from validation.serve.places import Demands, Place
from validation.serve.session import PageSession
from validation.serve.timing import Timed, time_page
from validation.tolerances import bound, held_to
from validation.trace import choose_tokens

logger = logging.getLogger(__name__)

Row = Parity | Latency | Quality
Keep = Callable[[Row], None]
TEXT_TOKENS = 256
"""Tokens of text that a quantised artifact predicts: half of what `validate` takes, as a browser may crash on more."""


@dataclass(frozen=True)
class Offer:
    """An artifact as it is served. urls: of the files that the page loads, by their path in the folder."""

    artifact: Artifact
    demands: Demands
    urls: Mapping[str, str]

    def identity(self, place: Place) -> Identity:
        """Of a cell that has not run."""
        return Case(self.artifact.folder, self.artifact.manifest, place.name).identity


@dataclass(frozen=True)
class Plan:
    """What is done in every place. prompt, tokens: as `bench` has them."""

    golden: Golden
    text: Text
    prompt: int
    tokens: int


def unable(offer: Offer, place: Place, reason: str) -> tuple[Row, ...]:
    """The rows of a cell that this device cannot run."""
    identity = offer.identity(place)
    return Parity(identity, Outcome.MISSING, (reason,), steps=0), Latency(identity, Outcome.MISSING, (reason,))


def stopped(offer: Offer, place: Place, error: Exception) -> Parity:
    """The row of a cell whose harness itself could not go on, as on a full disk: a missing row looks like a pass."""
    return Parity(offer.identity(place), Outcome.ERROR, (sentence(error),), steps=0)


def run(
    offer: Offer, place: Place, line: Line, plan: Plan, *, keep: Keep, memory: Callable[[], int], progress: Progress
) -> None:
    """Measure and check what the page at the end of `line` loads; each row goes to `keep` as soon as it is there.

    memory: bytes that the page told of so far, at most
    """
    timed = Timed(plan.prompt)
    identity = offer.identity(place)
    try:
        row = held_to(offer.artifact.manifest.target)
        with progress(f"loading {identity.artifact}"):
            session = PageSession(offer.artifact, place, line, offer.urls)
    except Exception as error:  # whatever happens is a row, so that other rows are not lost
        logger.debug("%s in %s", identity.artifact, place.name, exc_info=True)
        keep(Parity(identity, Outcome.ERROR, (sentence(error),), steps=0))
        keep(_latency(offer, identity, timed, error, memory()))
        return
    with closing(session):
        placed = placed_at(identity, session.placement())
        timed.load = session.load_s
        keep(_timed(session, offer, placed, timed, plan, memory, progress))
        keep(_compared(session, offer, placed, row, plan, progress))
        if row.text_kl is not None:
            keep(_read(session, offer, placed, row, plan, progress))


def _timed(
    session: PageSession,
    offer: Offer,
    identity: Identity,
    timed: Timed,
    plan: Plan,
    memory: Callable[[], int],
    progress: Progress,
) -> Latency:
    prompt = choose_tokens(plan.prompt, vocab=offer.artifact.manifest.model.vocab, seed=0)
    text = f"timing {identity.artifact} on {identity.requested}"
    try:
        time_page(session, prompt, tokens=plan.tokens, into=timed, text=text, progress=progress)
    except Exception as error:
        logger.debug("%s", text, exc_info=True)
        return _latency(offer, identity, timed, error, memory())
    elsewhere = judge.fallback(identity.requested, session.placement())
    return replace(
        _latency(offer, identity, timed, None, memory()),
        outcome=Outcome.FALLBACK if elsewhere else Outcome.PASS,
        reasons=(elsewhere,) if elsewhere else (),
    )


def _latency(offer: Offer, identity: Identity, timed: Timed, error: Exception | None, memory: int) -> Latency:
    """What was measured, also where an error ended it."""
    manifest, (decode, prefill) = offer.artifact.manifest, timed.samples
    other = [NOT_LATENCY[identity.evidence]] if identity.evidence in NOT_LATENCY else []
    return Latency(
        identity=identity,
        outcome=_outcome(error) if error else Outcome.PASS,
        reasons=(sentence(error),) if error else (),
        load_s=timed.load,
        first_token_s=timed.first,
        decode=decode,
        prefill=prefill,
        weight_bytes=weight_bytes(manifest),
        state_bytes=sum(tensor.spec().nbytes for tensor in manifest.state),
        rss_bytes=memory,
        warnings=(*other, *timed.warnings),
    )


def _compared(
    session: PageSession, offer: Offer, identity: Identity, row: Bound, plan: Plan, progress: Progress
) -> Parity:
    artifact = offer.artifact
    sizes = [graph.tokens for graph in artifact.manifest.graphs]
    try:
        itself = bound(row.itself) if row.itself else row
        trace = plan.golden.trace(artifact)
        return check(session, trace, row, identity, graph_sizes=sizes, itself=itself, progress=progress)
    except Exception as error:
        logger.debug("comparing %s", identity.artifact, exc_info=True)
        return Parity(identity, _outcome(error), (sentence(error),), steps=0, bound=row)


def _read(
    session: PageSession, offer: Offer, identity: Identity, row: Bound, plan: Plan, progress: Progress
) -> Quality:
    manifest, tuned = offer.artifact.manifest, stored_initial_state(offer.artifact)
    try:
        passage = take_passage(plan.text, offer.artifact, TEXT_TOKENS)
        with closing(plan.golden.reference(offer.artifact)) as reference:
            found = measure_quality(session, reference, passage, row, identity, tuned=tuned, progress=progress)
        return replace(found, weight_bytes=weight_bytes(manifest), checkpoint_bytes=manifest.source.bytes)
    except Exception as error:
        logger.debug("reading with %s", identity.artifact, exc_info=True)
        return Quality(identity, _outcome(error), (sentence(error),), plan.text.name)


def _outcome(error: Exception) -> Outcome:
    if isinstance(error, Missing):
        return Outcome.MISSING
    return Outcome.FAIL if isinstance(error, CheckFailed) else Outcome.ERROR
