"""Finds the first place where an artifact is no longer its checkpoint: per layer, then per operation, then why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import runtimes
from exporter import registry as targets
from exporter.model import open_model
from exporter.progress import Progress, silent
from runtimes import manifest, registry
from runtimes.contract import Artifact
from runtimes.errors import CheckFailed, WrongCall
from validation import judge, tolerances
from validation.golden import Find, Golden, find_checkpoint, open_reference, same_checkpoint
from validation.localise import levels, reference
from validation.localise.case import Case
from validation.localise.catalogue import Cause, causes
from validation.localise.explain import explain
from validation.localise.findings import SCHEMA, Found
from validation.localise.mil_tape import MilTap
from validation.localise.onnx_tape import OnnxTap
from validation.localise.places import Survey
from validation.localise.sentence import sentence
from validation.localise.tape import Closed, Op, Tap, Tape, record
from validation.localise.walk import Walk
from validation.metrics import Comparison, compare_state, compare_step
from validation.trace import Trace

LEAD = 12
"""Tokens stepped before, so that the state is not zero anywhere."""
MOST = 5
"""Operations that are named because they add most, or are wrong too."""
PRECISE = 16
"""Bits from which a weight's rounding is no quantising."""


def localise(
    artifact: Path,
    *,
    on: str | None = None,
    checkpoint: Path | None = None,
    tokens: int = 4,
    progress: Progress = silent,
    find: Find = find_checkpoint,
) -> Found:
    """Compare an artifact with the torch step of its checkpoint, value by value, over some tokens.

    on:         "runtime:device"; where None, the place it was made for. Values between operations are seen in
                ort:cpu and mil:*, elsewhere only what each layer returns as its state
    checkpoint: what to compare with, its hash checked; where None, `find` looks for it on this machine
    tokens:     how many; each starts from the reference's own state, so that nothing is inherited from the one before

    Raises BadArtifact, WrongCall, or Missing for a place or a checkpoint that this machine lacks.
    """
    if tokens < 1:
        raise WrongCall(f"cannot compare over {tokens} tokens", hint="one or more")
    document = manifest.read(artifact)
    place = ":".join(registry.parse(on)) if on else f"{document.target.runtime}:{document.target.device}"
    runtimes.check_reads(Artifact(artifact, document), place)
    registry.require(place)
    opened = manifest.open_artifact(artifact)
    locate = partial(same_checkpoint, checkpoint) if checkpoint else find
    trace = Golden(LEAD + tokens, 0, locate, open_reference, progress=progress).trace(opened)
    with progress(f"running {artifact.name} on {place}"):
        tap = _tap(opened, place)
        with closing(tap.session):
            tape = record(tap, opened, trace, tokens)
        reasons = _broken(tape, trace, opened)
        unfused = not reasons and tap.whole and place.startswith("ort:")
        if unfused:
            with closing(runtimes.open_on(opened, place)) as session:
                reasons = _broken(record(Closed(session), opened, trace, tokens), trace, opened)
    with progress("tracing the checkpoint's step"):
        model = open_model(locate(document.source), ln_x_eps=document.model.ln_x_eps)
        target, _ = targets.find(document.target.name)
        step = reference.trace(model, target.spelling)
    with progress("comparing"):
        flat = () if tap.whole else _flat(opened, trace)
        return _found(opened, place, step, tape, reasons, fused=unfused, flat=flat)


def _tap(artifact: Artifact, place: str) -> Tap:
    """What sees most of a session in that place."""
    runtime, device = registry.parse(place)
    if place == "ort:cpu":
        return OnnxTap(artifact)
    if runtime == "mil":
        return MilTap(artifact, device)
    return Closed(runtimes.open_on(artifact, place))


def _flat(artifact: Artifact, trace: Trace) -> list[Op]:
    """Products of two tensors of rank 3 in a graph that a processor here can run as well as the device."""
    formats: dict[str, Callable[[Artifact], Tap]] = {".onnx": OnnxTap, ".mlpackage": MilTap}
    opener = formats.get(Path(artifact.manifest.graphs[0].file).suffix)
    if opener is None:
        return []
    tap = opener(artifact)
    with closing(tap.session):
        tape = record(tap, artifact, trace, 1)
    ranks = {name: values[0].ndim for name, values in tape.values.items()}
    return [op for op in tape.ops if op.kind.lower() == "matmul" and [ranks.get(name) for name in op.inputs] == [3, 3]]


def _broken(tape: Tape, trace: Trace, artifact: Artifact) -> tuple[str, ...]:
    """The broken bounds of what the session returned, as `validate` says it of the local reading."""
    compared, first = Comparison(), len(trace.tokens) - len(tape.tokens)
    try:
        for at, (logits, state) in enumerate(zip(tape.logits, tape.states, strict=True)):
            compared.steps[at] = compare_step(trace.logits[first + at], logits)
            compared.states[at] = compare_state(trace.states[first + at + 1], state)
    except CheckFailed as failure:
        return (f"local: {failure.message}",)
    return tuple(judge.broken("local", compared, tolerances.bound(artifact.manifest.target.tolerance)))


def _found(
    artifact: Artifact,
    place: str,
    step: reference.Step,
    tape: Tape,
    reasons: Sequence[str],
    *,
    fused: bool,
    flat: Sequence[Op],
) -> Found:
    document = artifact.manifest
    level = levels.levels(document, whole=tape.whole)
    walked = Walk(step, tape, level, _aliases(document, step)).run()
    survey = Survey(step, tape, walked, _plain(step, tape))
    wrong = [match for match in walked.matches if match.wrong]
    first = survey.place(wrong[0], explain(Case(step, tape, walked, wrong[0], place, flat))) if wrong else None
    most = sorted(walked.matches, key=lambda match: -match.own / match.level)[:MOST]
    cause = _spread(document, fused=fused) if reasons and not wrong else None
    found = Found(
        schema=SCHEMA,
        artifact=artifact.folder.resolve().name,
        target=document.target.name,
        precision=document.target.precision,
        place=place,
        tokens=len(tape.tokens),
        whole=tape.whole,
        seen=len({match.node.name for match in walked.matches}),
        operations=len(step.nodes),
        lost=bool(reasons or wrong),
        reasons=tuple(reasons),
        sentence="",
        layers=tuple(survey.layers()),
        first=first,
        others=tuple(survey.place(match) for match in wrong[1 : 1 + MOST]),
        most=tuple(survey.place(match) for match in most),
        cause=cause,
    )
    return sentence(found)


def _plain(step: reference.Step, tape: Tape) -> reference.Env:
    """What every operation gives if none but the reference's own results enter it."""
    env = step.start(tape.tokens, tape.written)
    for node in step.nodes:
        env[node.name] = step.compute(node, env)
    return env


def _aliases(document: manifest.Manifest, step: reference.Step) -> Mapping[str, str]:
    """Output ports of the graph -> the operation of the reference they come from; stacked states have none."""
    outputs = dict(zip(step.state_names(), step.outputs[1:], strict=True))
    ports = {tensor.output: outputs[tensor.name] for tensor in document.state if tensor.name in outputs}
    graph = next(graph for graph in document.graphs if graph.tokens == 1)
    return {graph.output: step.outputs[0], **ports}


def _spread(document: manifest.Manifest, *, fused: bool) -> Cause:
    """Why results are wrong where no operation is."""
    if fused:
        return causes()["fused-by-the-runtime"]
    few = levels.fewest_bits(document) < PRECISE
    return causes()["few-bits" if few else "rounding"]
