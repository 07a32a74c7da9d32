"""Surveys, results and changes as tables and sentences for people on stdout; it computes and judges nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from rwkv_export import findings
from rwkv_export.output import plain_table, stdout

if TYPE_CHECKING:
    from runtimes.profile import Profile
    from rwkv_export.survey import Survey
    from validation.comparison import Change
    from validation.outcome import Identity, Latency, Machine, Parity, Quality, Results, Samples
    from validation.reports.rows import Row

STYLES = {
    "pass": "green",
    "fail": "red",
    "error": "red",
    "fallback": "yellow",
    "suspicious": "yellow",
    "compiled": "cyan",
    "missing": "dim",
}

PARITY = ("local |Δ|", "free |Δ|", "state rel", "KL nats", "top-1")
QUALITY = ("weights", "mean KL nats", "p99 KL", "perplexity", "checkpoint's", "top-1")
PROFILE = ("calls", "median ms", "share")
DEAREST = 12
"""Rows of a profile that are shown by themselves."""
LATENCY = ("load", "first token", "decode ms ± MAD", "p99 ms", "tok/s", "prefill tok/s", "of memory")

CHANGE_STYLES = {"slower": "red", "less accurate": "red", "outcome changed": "yellow", "vanished": "yellow"}
CHANGE_ORDER = [*CHANGE_STYLES, "appeared", "faster", "more accurate"]


def print_survey(survey: Survey) -> None:
    """Targets and places, what is missing in the last column."""
    targets = plain_table(
        _word("target"), _text("what it is"), _text("precisions"), _word("runs on"), _text("export here")
    )
    for row in survey.targets:
        options = [f"-O {name}={'|'.join(values) or '...'}" for name, values in row.options.items()]
        what, runs_on = "\n".join((row.summary, *options)), "\n".join(row.places)
        targets.add_row(row.name, what, ", ".join(row.precisions), runs_on, _usable(row.missing))
    places = plain_table(_word("place"), _word("reads"), _text("run here"))
    for place in survey.places:
        places.add_row(place.place, " ".join(place.reads), _usable(place.missing))
    stdout().print(targets, "", places, sep="\n")


def print_machine(machine: Machine) -> None:
    """A heading for what follows."""
    facts = (machine.name, machine.cpu, machine.system)
    stdout().print("", Text(" · ".join(fact for fact in facts if fact), style="bold"), sep="\n")


def print_results(results: Results) -> None:
    """Parity, quality and latency, each a table with the reasons and warnings below it."""
    from validation.reports.drift import remarks
    from validation.reports.rows import join, verdict
    from validation.reports.words import profiled

    console, rows = stdout(), join([results])
    if results.parity:
        console.print(_parity(rows))
        _print_hops(results.parity)
        _print_drift(results.parity)
        _print_notes((row.identity, (*row.reasons, *remarks(row))) for row in results.parity)
    if results.parity and (results.quality or results.latency):
        console.print()
    if results.quality:
        console.print(_quality(results.quality))
        _print_notes((row.identity, row.reasons) for row in results.quality)
    if results.quality and results.latency:
        console.print()
    if results.latency:
        console.print(_latency(results.latency))
        _print_notes((row.identity, (*row.reasons, *row.warnings)) for row in results.latency)
    for row in results.latency:
        if row.profile:
            console.print("", _profile(row, row.profile), "", sep="\n")
            console.print(f"Shares are {profiled(row.profile, row.slowdown)}.", soft_wrap=True)
    for lint in results.lint:
        console.print(f"{findings.summary(lint)}: see `rwkv-export lint`", soft_wrap=True)
    console.print(str(verdict(rows)), soft_wrap=True)


def print_changes(changes: Sequence[Change]) -> None:
    """A sentence for everything that changed, what got worse first, and how much did not change."""
    console = stdout()
    changed = [change for change in changes if change.verdict != "same"]
    for change in sorted(changed, key=lambda change: CHANGE_ORDER.index(change.verdict)):
        console.print(change.sentence, style=CHANGE_STYLES.get(change.verdict, ""), soft_wrap=True)
    console.print(f"{len(changed)} changed, {len(changes) - len(changed)} the same")


def _parity(rows: Sequence[Row]) -> Table:
    from validation.reports.words import share, sig, worst

    table = plain_table(_text("parity"), _word("ran on"), _word("verdict"), _word("evidence"), *map(_number, PARITY))
    for row, part in ((row, row.parity) for row in rows if row.parity):
        numbers = [""] * len(PARITY)
        if part.local and part.free:
            errors = (part.local.worst, part.free.worst, worst(part.free.state_rel.values()), worst(part.free.kl))
            numbers = [*map(sig, errors), share(part.free.top1)]
        table.add_row(part.identity.artifact, _place(part.identity), _verdict(part.outcome), row.evidence, *numbers)
    return table


def _print_hops(rows: Sequence[Parity]) -> None:
    """What the device's kernels cost and what quantising does, where the two are told apart."""
    from validation.reports import hops

    table = plain_table(_text("two hops"), _word("kernel against"), *map(_number, hops.HEADER))
    for row in rows:
        if row.hops:
            table.add_row(row.identity.artifact, f"{row.hops.place}, same graph", *hops.cells(row.hops))
    if table.row_count:
        stdout().print("", table, sep="\n")


def _print_drift(rows: Sequence[Parity]) -> None:
    """Whether errors and states grow, where there were tokens enough to tell."""
    from validation.reports import drift

    table = plain_table(_text("drift"), _word("ran on"), *map(_number, drift.HEADER))
    for row in rows:
        if row.drift:
            table.add_row(*_who(row.identity), *drift.cells(row.drift))
    if table.row_count:
        stdout().print("", table, "", sep="\n")


def _quality(rows: Sequence[Quality]) -> Table:
    from validation.reports.words import fine, share, sig, size

    table = plain_table(_text("quality on text"), _word("ran on"), _word("verdict"), *map(_number, QUALITY))
    for row in rows:
        numbers = [""] * len(QUALITY)
        if reading := row.reading:
            perplexities = fine(reading.perplexity), fine(reading.reference_perplexity)
            divergences = sig(reading.kl_mean), sig(reading.kl_p99)
            numbers = [size(row.weight_bytes), *divergences, *perplexities, share(reading.top1)]
        table.add_row(*_who(row.identity), _verdict(row.outcome), *numbers)
    return table


def _latency(rows: Sequence[Latency]) -> Table:
    table = plain_table(_text("latency"), _word("ran on"), _word("verdict"), *map(_number, LATENCY))
    for row in rows:
        timed = [f"{row.load_s * 1e3:.0f} ms", f"{row.first_token_s * 1e3:.1f} ms"] if row.decode else ["", ""]
        speeds = (*_decode(row.decode), _rate(row.prefill), _share(row))
        table.add_row(*_who(row.identity), _verdict(row.outcome), *timed, *speeds)
    return table


def _profile(row: Latency, profile: Profile) -> Table:
    """The dearest rows of a profile, and the others as one."""
    from validation.reports.words import plural, portion, sig

    header = f"a token of {row.identity.artifact} on {row.identity.requested}"
    table = plain_table(_text(header), _text("computed by"), *map(_number, PROFILE))
    shown = profile.dearest(DEAREST)
    for spent in shown:
        calls = "" if spent.side == "overhead" else str(spent.calls)
        table.add_row(spent.name, spent.unit or spent.side, calls, sig(spent.median_ms), portion(spent.share))
    if others := profile.spent[len(shown) :]:
        calls, share = str(sum(spent.calls for spent in others)), portion(sum(spent.share for spent in others))
        table.add_row(plural(len(others), "other"), "", calls, "", share)
    return table


def _decode(samples: Samples | None) -> list[str]:
    if samples is None:
        return ["", "", ""]
    return [f"{samples.median_ms:.3f} ± {samples.mad_ms:.3f}", f"{samples.p99_ms:.3f}", _rate(samples)]


def _share(row: Latency) -> str:
    """Of the memory's speed that decode takes; as long as it is no cache that it reads from."""
    return f"{row.bandwidth:.0%}" if row.bandwidth is not None and row.bandwidth <= 1 else ""


def _rate(samples: Samples | None) -> str:
    speed = samples.tokens_per_second if samples else None
    return "" if speed is None else f"{speed:.0f}"


def _who(identity: Identity) -> tuple[str, str]:
    how = "" if identity.evidence in ("", "run") else f" ({identity.evidence})"
    return identity.artifact, _place(identity) + how


def _place(identity: Identity) -> str:
    from validation.reports.rows import place

    asked = "" if identity.observed == identity.requested else f", not {identity.requested}"
    return place(identity) + asked


def _verdict(outcome: str) -> Text:
    return Text(str(outcome), style=STYLES.get(outcome, ""))


def _usable(missing: str | None) -> Text:
    return Text("yes", style="green") if missing is None else Text(f"no: {missing}", style="yellow")


def _print_notes(notes: Iterable[tuple[Identity, Iterable[str]]]) -> None:
    """Each sentence once, with the rows it holds for."""
    from validation.reports.words import listing

    holds: dict[str, list[str]] = {}
    for identity, sentences in notes:
        for sentence in sentences:
            holds.setdefault(sentence, []).append(f"{identity.artifact} on {identity.requested}")
    for sentence, rows in holds.items():
        stdout().print(f"{listing(rows)}: {sentence}", soft_wrap=True)


def _text(header: str) -> Column:
    """Breaks over lines on a narrow terminal."""
    return Column(header, overflow="fold")


def _word(header: str) -> Column:
    return Column(header, no_wrap=True)


def _number(header: str) -> Column:
    return Column(header, no_wrap=True, justify="right")
