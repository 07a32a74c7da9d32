"""Runs artifacts in places and collects the rows; a row that could not run says why, and never counts as a pass."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import runtimes
from exporter.progress import Progress, silent
from runtimes import manifest, registry
from runtimes.contract import Artifact
from runtimes.errors import BadArtifact, CheckFailed, Missing, RwkvExportError, WrongCall, absent
from runtimes.manifest import Coverage
from runtimes.remote import conditions
from runtimes.session import stored_initial_state
from validation import bandwidth, diagnosis, energy, judge, machine, outcome
from validation.golden import Find, Golden, Open, Replay, find_checkpoint, open_reference, same_checkpoint
from validation.hops import with_hops
from validation.latency import time_session
from validation.lint import linter
from validation.lint.findings import Lint
from validation.lint.verdict import weighed
from validation.outcome import Identity, Latency, Outcome, Parity, Quality, Results, placed_at
from validation.parity import check
from validation.profile import profiled
from validation.quality import TOKENS, Text, measure_quality, measure_recorded, open_text, require_tokens, take_passage
from validation.rows import Keep, forget
from validation.tolerances import bound, held_to
from validation.trace import choose_tokens, require_steps

T = TypeVar("T", Parity, Quality, Latency)

logger = logging.getLogger(__name__)

STEPS = 64
"""Tokens compared over unless told."""

NOT_LATENCY = {
    "interpreted": "these times are those of an interpreter that checks the artifact, not of the target's own runtime",
    "emulated": "these times are those of an emulator that checks the artifact, not of the device it stands for",
}


class Case(NamedTuple):
    """One artifact in one place."""

    folder: Path
    manifest: manifest.Manifest
    place: str

    @property
    def identity(self) -> Identity:
        """Of a case that has not run."""
        model, target = self.manifest.model, self.manifest.target
        return Identity(
            artifact=self.folder.resolve().name,
            model=model.name,
            version=model.version,
            target=target.name,
            precision=target.precision,
            requested=self.place,
            observed="",
            coverage=self.coverage,
            digest=self.digest,
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest's file; "" where it is gone."""
        try:
            return manifest.sha256(self.folder / manifest.FILE_NAME)
        except OSError:
            return ""

    @property
    def coverage(self) -> Coverage | None:
        """What delegates took of the graph for one token."""
        return next((graph.coverage for graph in self.manifest.graphs if graph.tokens == 1), None)


def validate(
    artifacts: Sequence[Path],
    *,
    on: Sequence[str] | None = None,
    checkpoint: Path | None = None,
    trace: Path | None = None,
    steps: int | None = None,
    seed: int = 0,
    quality: bool = False,
    text: Path | None = None,
    quality_tokens: int = TOKENS,
    lint: bool = True,
    keep: Keep = forget,
    progress: Progress = silent,
    find: Find = find_checkpoint,
    reference: Open = open_reference,
) -> Results:
    """Compare every artifact, in every place of `on`, with the checkpoint it was made from.

    artifacts:  artifact folders, and folders that hold some
    on:         "runtime:device" places; where empty, the place each artifact was made for
    checkpoint: what to compare with, its hash checked; where None, `find` looks for it on this machine
    trace:      a file that `record_trace` wrote: its tokens, text and numbers are compared with, and no checkpoint
    steps:      tokens to compare over, drawn with `seed`; where None, STEPS
    quality:    also read a text with every artifact, not only with those whose tolerance bounds that (`text_kl`)
    text:       what is read, a UTF-8 file, which implies `quality`; where None, the text bundled for this
    quality_tokens: how many of its tokens are predicted
    lint:       also lint artifacts that promise the Neural Engine; what is known to keep one off there fails it
    keep:       is given each row as soon as it is known
    reference:  opens a checkpoint as the session whose numbers are right

    Returns one parity row for each artifact and place, and a quality row for those that read: MISSING where this
    machine lacks something or the artifact has no tokenizer, COMPILED where it lacks the device of an artifact that a
    delegate's compiler made, ERROR where something raised. Raises BadArtifact for a folder without a readable
    manifest; WrongCall for too few steps or tokens, for a text or trace that cannot be read, for a trace and what it
    has of its own, and for a place in `on` that is unknown or cannot read one of the artifacts.
    """
    if trace and (checkpoint or text or steps is not None or seed):
        raise WrongCall(f"{trace} has a checkpoint, a text and steps of its own", hint="leave out what chooses others")
    steps = STEPS if steps is None else steps
    require_steps(steps)
    require_tokens(quality_tokens)
    chosen = open_text(text)
    locate = partial(same_checkpoint, checkpoint) if checkpoint else find
    golden = Replay(trace) if trace else Golden(steps, seed, locate, reference, progress=progress)
    cases = list_cases(artifacts, on)
    readers = [case for case in cases if quality or text or reads_text(case)]
    lints = _linted(cases, progress) if lint else {}
    rows = []
    for case in cases:
        row = attempt(case, partial(_validate, case, golden, progress), _unproven)
        rows.append(weighed(row, lints.get(case.folder), compute=case.manifest.precision.compute))
        keep(rows[-1])
    read = []
    for case in readers:
        reading = partial(read_beside, case, golden, chosen, quality_tokens, progress)
        read.append(attempt(case, reading, partial(unread, chosen.name)))
        keep(read[-1])
    return Results(
        outcome.SCHEMA,
        machine.describe(),
        parity=tuple(rows),
        quality=tuple(read),
        lint=tuple(lints.values()),
        made=machine.now(),
    )


def measure(
    artifacts: Sequence[Path],
    *,
    on: Sequence[str] | None = None,
    prompt: int = 64,
    tokens: int = 128,
    profile: bool = False,
    cool_down: int = 0,
    keep: Keep = forget,
    progress: Progress = silent,
) -> Results:
    """Time every artifact in every place of `on`: loading, the first token, prompts of `prompt` tokens, `tokens` steps.

    profile: also find where a token's time goes, in a session of its own
    cool_down: seconds to rest before each measurement, for machines that heat up
    keep:    is given each row as soon as it is known

    Rows and exceptions as in `validate`.
    """
    if prompt < 1 or tokens < 1:
        raise WrongCall(f"cannot time a prompt of {prompt} and {tokens} generated tokens", hint="both must be positive")
    cases = list_cases(artifacts, on)
    with progress("looking at what else runs here"):
        disturbed = diagnosis.background(machine.busy())
    timed = partial(_measure, prompt=prompt, tokens=tokens, disturbed=disturbed, profile=profile, progress=progress)
    rows = []
    for case in cases:
        if cool_down:
            with progress("resting"):
                time.sleep(cool_down)
        rows.append(attempt(case, partial(timed, case), _untimed))
        keep(rows[-1])
    return Results(outcome.SCHEMA, machine.describe(), latency=tuple(rows), made=machine.now())


def exit_code(results: Results) -> int:
    """0: every row passed. 1: one failed, fell back, is suspicious or raised. 3: some could not run, or there are none.

    A timing row that fell back counts too: its numbers are those of another device.
    """
    rows: tuple[Parity | Quality | Latency, ...] = (*results.parity, *results.quality, *results.latency)
    outcomes = {row.outcome for row in rows}
    if outcomes - {Outcome.PASS, Outcome.COMPILED, Outcome.MISSING}:
        return CheckFailed.exit_code
    return 0 if outcomes == {Outcome.PASS} else Missing.exit_code


def list_cases(artifacts: Sequence[Path], on: Sequence[str] | None) -> list[Case]:
    """Every artifact in every place of `on`, or in the place it was made for; raises as `validate`."""
    if not artifacts:
        raise WrongCall("no artifact was named", hint="name artifact folders, such as out/*")
    places = [":".join(registry.parse(place)) for place in dict.fromkeys(on or ())]
    cases = []
    for folder in chain.from_iterable(manifest.find(Path(path)) for path in artifacts):
        document = manifest.read(folder)
        for place in places:
            runtimes.check_reads(Artifact(folder, document), place)
        made_for = f"{document.target.runtime}:{document.target.device}"
        cases += [Case(folder, document, place) for place in places or [made_for]]
    return cases


def attempt(case: Case, run: Callable[[], T], row: Callable[[Case, Outcome, str], T]) -> T:
    """What `run` gives, or a row that says why it could not."""
    try:
        return run()
    except Missing as error:
        return row(case, Outcome.COMPILED if _only_compiled(case) else Outcome.MISSING, sentence(error))
    except CheckFailed as error:
        return row(case, Outcome.FAIL, sentence(error))
    except Exception as error:  # whatever a backend raises is a row, so that the other rows are not lost
        logger.debug("%s on %s", case.folder, case.place, exc_info=True)
        lacking = absent(error)
        return row(case, Outcome.MISSING if lacking else Outcome.ERROR, sentence(lacking or error))


def _only_compiled(case: Case) -> bool:
    """Whether a delegate's compiler made the artifact, and this machine lacks the device for it.

    An emulator is no device: where that is missing, something could be installed, and nothing was shown.
    """
    if case.coverage is None or not case.coverage.delegates or case.place.endswith("emulator"):
        return False
    try:
        registry.require(case.place)
    except Missing:
        return True
    return False


def _unproven(case: Case, outcome: Outcome, reason: str) -> Parity:
    return Parity(case.identity, outcome, (reason,), steps=0)


def unread(text: str, case: Case, outcome: Outcome, reason: str) -> Quality:
    """The row of a case that could not read the text of that name."""
    return Quality(case.identity, outcome, (reason,), text)


def _untimed(case: Case, outcome: Outcome, reason: str) -> Latency:
    return Latency(case.identity, outcome, (reason,))


def sentence(error: Exception) -> str:
    """What a row says of it: ours with the hint, others with their type."""
    if isinstance(error, RwkvExportError):
        return f"{error.message} ({error.hint})" if error.hint else error.message
    return f"{type(error).__name__}: {error}"


def _opened(case: Case) -> Artifact:
    """The artifact, every hash verified; raises BadArtifact, also where it is no longer the one that was listed."""
    artifact = manifest.open_artifact(case.folder)
    if artifact.manifest != case.manifest:
        raise BadArtifact(f"{case.folder} was replaced while this ran", hint="run again")
    return artifact


def _validate(case: Case, golden: Golden | Replay, progress: Progress) -> Parity:
    row = held_to(case.manifest.target)
    artifact = _opened(case)
    registry.require(case.place)  # before the reference is run for nothing
    trace = golden.trace(artifact)
    itself = bound(row.itself) if row.itself else row
    sizes = [graph.tokens for graph in case.manifest.graphs]
    with closing(runtimes.open_on(artifact, case.place)) as session:
        found = check(session, trace, row, case.identity, graph_sizes=sizes, itself=itself, progress=progress)
        place = artifact.manifest.target.kernel
        if not (place and row.kernel) or place == case.place:
            return found
        with closing(runtimes.open_on(artifact, place)) as exact:
            kernel = bound(row.kernel)
            return with_hops(found, session, exact, trace, place=place, bound=kernel, progress=progress)


def reads_text(case: Case) -> bool:
    """Whether the artifact's tolerance has a bound for text."""
    try:
        return held_to(case.manifest.target).text_kl is not None
    except WrongCall:
        return False


def read_beside(case: Case, golden: Golden | Replay, text: Text, tokens: int, progress: Progress) -> Quality:
    """The row of a case that reads a text beside its checkpoint, or what was recorded of that."""
    row = held_to(case.manifest.target)
    artifact = _opened(case)
    registry.require(case.place)
    if isinstance(golden, Replay):
        passage, logits = golden.passage(artifact), golden.trace(artifact).logits
        with closing(runtimes.open_on(artifact, case.place)) as session:
            found = measure_recorded(session, logits, passage, row, case.identity, progress=progress)
        return replace(found, weight_bytes=weight_bytes(case.manifest), checkpoint_bytes=case.manifest.source.bytes)
    passage, tuned = take_passage(text, artifact, tokens), stored_initial_state(artifact)
    with closing(golden.reference(artifact)) as reference, closing(runtimes.open_on(artifact, case.place)) as session:
        found = measure_quality(session, reference, passage, row, case.identity, tuned=tuned, progress=progress)
    return replace(found, weight_bytes=weight_bytes(case.manifest), checkpoint_bytes=case.manifest.source.bytes)


def _linted(cases: Sequence[Case], progress: Progress) -> dict[Path, Lint]:
    """The lint of every artifact that promises the Neural Engine, by its folder; what cannot be read says so."""
    found: dict[Path, Lint] = {}
    for case in cases:
        target = case.manifest.target
        if target.name in linter.TARGETS and case.folder not in found:
            with progress(f"linting {case.identity.artifact}"):
                try:
                    found[case.folder] = linter.lint_artifact(Artifact(case.folder, case.manifest))
                except RwkvExportError as error:
                    trouble = sentence(error)
                    found[case.folder] = Lint(case.identity.artifact, target.name, target.precision, 0, (), trouble)
    return found


def _measure(
    case: Case, *, prompt: int, tokens: int, disturbed: list[str], profile: bool, progress: Progress
) -> Latency:
    artifact = _opened(case)
    ids = choose_tokens(prompt, vocab=case.manifest.model.vocab, seed=0)
    text = f"timing {case.identity.artifact} on {case.place}"
    cool = conditions.at(case.place)
    before = time.perf_counter()
    with closing(runtimes.open_on(artifact, case.place)) as session:
        loaded = time.perf_counter() - before
        meter = energy.meter(case.place)
        timing = time_session(session, ids, tokens=tokens, meter=meter, text=text, progress=progress)
        placed = session.placement()
    elsewhere = judge.fallback(case.place, placed)
    other = [NOT_LATENCY[placed.evidence]] if placed.evidence in NOT_LATENCY else []
    identity = placed_at(case.identity, placed)
    row = Latency(
        identity=identity,
        outcome=Outcome.FALLBACK if elsewhere else Outcome.PASS,
        reasons=(elsewhere,) if elsewhere else (),
        load_s=loaded,
        first_token_s=timing.first_token_s,
        decode=timing.decode,
        prefill=timing.prefill,
        weight_bytes=weight_bytes(case.manifest),
        state_bytes=sum(tensor.spec().nbytes for tensor in case.manifest.state),
        rss_bytes=timing.rss_bytes,
        warnings=(*other, *disturbed, *timing.warnings, *conditions.remarks(cool, conditions.at(case.place))),
        method=timing.method,
        energy=timing.energy if placed.evidence == "run" else None,
        traffic=bandwidth.traffic(artifact, identity, machine.cores()),
    )
    return profiled(row, artifact, progress=progress) if profile else row


def weight_bytes(document: manifest.Manifest) -> int:
    """Size of the graphs and their weights: every file but the tokenizer, the tuned state and the README."""
    others = {document.tokenizer.file, document.initial_state, "README.md"}
    return sum(file.bytes for file in document.files if file.path not in others)
