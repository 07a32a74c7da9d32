"""Results as one self-contained HTML page that loads nothing; the pictures are drawn in charts, the look is in CSS."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from runtimes.profile import Side
from runtimes.schema import to_plain
from validation.outcome import Bound, Latency, Machine, Reading, Results, Samples
from validation.reports import charts, hops, measured, placement
from validation.reports import history as past
from validation.reports.delegates import taken
from validation.reports.drift import remarks
from validation.reports.rows import Row, counts, join, said, verdict
from validation.reports.words import (
    NOTHING,
    change,
    fine,
    listing,
    plural,
    portion,
    printable,
    profiled,
    share,
    sig,
    size,
    worst,
)

RAW_LIMIT = 300_000
"""Most bytes of embedded raw results; larger ones are left out, which the page says."""


@dataclass(frozen=True)
class Picture:
    """One chart with the title above it."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Chapter:
    """One part of the page with pictures: what to see in them, and per row what its line says."""

    ident: str
    title: str
    lead: str
    pictures: tuple[Picture, ...]
    legend: tuple[tuple[Row, str], ...]


def render(results: Sequence[Results], *, history: Sequence[Results] = ()) -> str:
    """The page for some results documents; identical input gives identical text.

    history: documents of earlier runs, which only show how rows of `results` changed
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"sig": sig, "fine": fine, "share": share, "portion": portion, "size": size, "worst": worst}
    environment.globals |= {
        "change": change,
        "costs": measured.costs,
        "said": said,
        "swatch": lambda row: Markup(charts.swatch(row)),  # noqa: S704  our own markup
    }
    rows = join(results)
    page = environment.get_template("report.html.j2").render(
        css=Markup((here / "report.css").read_text(encoding="utf-8")),  # noqa: S704  our own file
        verdict=verdict(rows),
        counts=counts(rows),
        rows=rows,
        machines=_machines(rows, results),
        chapters=[
            chapter for chapter in (*(make(rows) for make in CHAPTERS), _history(rows, results, history)) if chapter
        ],
        taken=taken(rows),
        lints=list(dict.fromkeys(lint for document in results for lint in document.lint)),
        read=[row for row in rows if row.quality],
        passages=_passages(rows),
        chunkings=_chunkings(rows),
        apart=hops.split(rows),
        hop_names=hops.HEADER,
        readings=_readings(rows),
        timed=_timed(rows),
        measured=measured.table(rows),
        measured_names=measured.HEADER,
        metered=measured.reasons(rows),
        profiled=[(row, part) for row in rows if row.profile for part in row.profile.spent],
        bounds=_bounds(rows),
        about=_about(rows),
        notes=_notes(rows),
        downloads=_downloads(results),
        nothing=NOTHING,
    )
    return printable(page)


def _machines(rows: Sequence[Row], results: Sequence[Results]) -> list[tuple[Machine, list[Row]]]:
    """Every machine once with its rows, also a machine without any."""
    machines: list[Machine] = []
    for document in results:
        if document.machine not in machines:
            machines.append(document.machine)
    return [(machine, [row for row in rows if row.machine == machine]) for machine in machines]


def _drift(rows: Sequence[Row]) -> Chapter | None:
    shown = [(row, row.parity, row.free) for row in rows if row.parity and row.free and row.free.max_abs]
    legend = [(row, "; ".join((_drift_words(free), *remarks(parity)))) for row, parity, free in shown]
    lead = (
        "Each target keeps its own state from the start (bold), so an error can grow from token to token. "
        "The fine dotted line corrects the state before every step and shows the kernel alone. "
        "A flat bold line under its bound is what one wants to see."
    )
    return _chapter("drift", "Does the error grow?", lead, [("Largest |Δlogit| per step", charts.drift(rows))], legend)


def _drift_words(free: Reading) -> str:
    """The worst error, the first differing token, and what a logarithmic axis cannot show."""
    words = [f"worst {sig(worst(free.max_abs))}"]
    first = free.first_divergent
    words.append("same greedy token at every step" if first is None else f"greedy token differs from step {first}")
    zeros = sum(value == 0 for value in free.max_abs)
    odd = sum(not math.isfinite(value) for value in free.max_abs)
    words += [f"exactly zero at {plural(zeros, 'step')}"] if zeros else []
    words += [f"not finite at {plural(odd, 'step')}"] if odd else []
    return ", ".join(words)


def _latency(rows: Sequence[Row]) -> Chapter | None:
    legend = []
    for row in rows:
        if row.decode:
            legend.append((row, f"{sig(row.tokens_per_second)} tok/s, {', '.join(measured.costs(row))}"))
    lead = (
        "In the first picture a steep curve is steady, a long tail to the right is jitter; the dot is the median. "
        "The second has the same samples in the order they were made, where warm-up, throttling and pauses show."
    )
    pictures = [
        ("Share of tokens made within …", charts.ecdf(rows)),
        ("Milliseconds by token index", charts.timeline(rows)),
    ]
    return _chapter("latency", "How fast, and how steadily?", lead, pictures, legend)


def _profiles(rows: Sequence[Row]) -> Chapter | None:
    legend = [(row, _profile_words(row.latency)) for row in rows if row.latency and row.latency.profile]
    lead = (
        "What the runtime's own profiler says of a decode step, in a session apart from the timed one, because "
        "profiling slows. Bars in the row's colour are kernels inside a delegate, plain ones the runtime's own, thin "
        "ones overhead: what lies between those, the profiler's own work included."
    )
    pictures = [(row.label, charts.spent(row)) for row in rows]
    return _chapter("profile", "Where does a token's time go?", lead, pictures, legend)


def _profile_words(timing: Latency) -> str:
    """Each delegate's share, and what the others took."""
    profile = timing.profile
    if not profile:
        return ""
    shares = [(unit, profile.share(Side.DELEGATE, unit)) for unit in profile.delegates]
    shares += [("the runtime's own kernels", profile.share(Side.RUNTIME)), ("overhead", profile.share(Side.OVERHEAD))]
    parts = ", ".join(f"{words} {portion(share)}" for words, share in shares if share)
    return f"{parts}, {profiled(profile, timing.slowdown)}"


def _placement(rows: Sequence[Row]) -> Chapter | None:
    legend = [(row, placement.words(row)) for row in rows if placement.shares(row)]
    lead = (
        "What computed each row, as the runtime itself tells after running: the largest share in the row's colour. "
        "Delegates count by their multiply-accumulates, execution providers by their nodes."
    )
    pictures = [("Share of each row's work", placement.picture(rows))]
    return _chapter("placement", "Where did it run?", lead, pictures, legend)


def _states(rows: Sequence[Row]) -> Chapter | None:
    legend = []
    for row in rows:
        for name, error in charts.worst_states(row, 1):
            used = ""
            if row.bound and row.bound.state_rel > 0 and math.isfinite(error):
                used = f", {_times(error / row.bound.state_rel)} its bound"
            legend.append((row, f"worst is {name}: {sig(error)}{used}"))
    lead = (
        "A recurrent model can hide an error in its state. These are the state tensors that ended furthest from the "
        "checkpoint's, relative to their largest value; the upright mark is the bound."
    )
    return _chapter(
        "states", "Where does the state differ?", lead, [("Worst state tensors", charts.states(rows))], legend
    )


def _times(ratio: float) -> str:
    return f"{ratio:.1%} of" if ratio < 0.1 else f"{ratio:.0%} of" if ratio <= 1 else f"{sig(ratio)} times"


def _tradeoff(rows: Sequence[Row]) -> Chapter | None:
    both = [row for row in rows if row.tokens_per_second and row.error is not None]
    legend = [(row, f"{sig(row.tokens_per_second)} tok/s at error {sig(row.error)}") for row in both]
    lead = "Further right is faster, further down is closer to the checkpoint. A hollow mark did not pass."
    pictures = [("Largest |Δlogit| against decode speed", charts.scatter(rows))]
    return _chapter("tradeoff", "What does speed cost?", lead, pictures, legend)


def _history(rows: Sequence[Row], results: Sequence[Results], earlier: Sequence[Results]) -> Chapter | None:
    histories = past.trace(rows, results, earlier)
    legend = [(history.row, past.words(history)) for history in histories]
    lead = (
        "Medians of earlier runs on the same machine, by date; the upright lines reach the 90th percentile. "
        "The command compare tests whether two of them really differ."
    )
    pictures = [("Median milliseconds per generated token", past.picture(histories))]
    return _chapter("history", "How did it change?", lead, pictures, legend)


def _chapter(
    ident: str, title: str, lead: str, drawn: Sequence[tuple[str, str | None]], legend: Sequence[tuple[Row, str]]
) -> Chapter | None:
    pictures = tuple(Picture(name, Markup(svg)) for name, svg in drawn if svg)  # noqa: S704  drawn by us, escaped there
    return Chapter(ident, title, lead, pictures, tuple(legend)) if pictures else None


CHAPTERS: tuple[Callable[[Sequence[Row]], Chapter | None], ...] = (
    _drift,
    _latency,
    _placement,
    _profiles,
    _states,
    _tradeoff,
)


def _passages(rows: Sequence[Row]) -> str:
    """How much was read of what."""
    read = [row.quality for row in rows if row.quality and row.quality.reading]
    return listing(dict.fromkeys(f"{plural(row.reading.tokens, 'token')} of {row.text}" for row in read if row.reading))


def _chunkings(rows: Sequence[Row]) -> list[str]:
    """The names of all prefill chunkings, in order of appearance."""
    return list(dict.fromkeys(name for row in rows if row.parity for name in row.parity.prefill))


def _readings(rows: Sequence[Row]) -> list[tuple[Row, str, Reading, str]]:
    """(row, kind, reading, lowest SQNR in words) of both readings of every row."""
    found = []
    for row in rows:
        if row.parity:
            for kind, reading in (("free", row.parity.free), ("local", row.parity.local)):
                if reading:
                    ratios = [value for value in reading.sqnr_db if value is not None]
                    lowest = f"{sig(min(ratios))} dB" if ratios else "no error"
                    found.append((row, kind, reading, lowest))
    return found


def _timed(rows: Sequence[Row]) -> list[tuple[Row, str, Samples]]:
    """(row, what was timed, samples) of every row that has samples."""
    found = []
    for row in rows:
        if row.latency:
            how = f", {row.stand_in}" if row.stand_in else ""
            for what, samples in (("decode", row.latency.decode), ("prefill", row.latency.prefill)):
                if samples:
                    count = f" of {samples.tokens}" if what == "prefill" else ""
                    found.append((row, f"{what}{count}{how}", samples))
    return found


def _bounds(rows: Sequence[Row]) -> list[tuple[Bound, str]]:
    """Every bound that was used, once, with the rows it holds for."""
    bounds = list(dict.fromkeys(row.bound for row in rows if row.bound))
    return [(bound, listing((str(row.number) for row in rows if row.bound == bound), most=12)) for bound in bounds]


def _notes(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Warnings of the measurements as (row, sentence)."""
    return [(row.label, warning) for row in rows if row.latency for warning in row.latency.warnings]


def _downloads(results: Sequence[Results]) -> list[tuple[str, str]]:
    """(file name, data URI) of each document, or nothing where they are too large together."""
    files = []
    for index, document in enumerate(results, start=1):
        raw = json.dumps(to_plain(document), separators=(",", ":"), allow_nan=False).encode()
        name = "results.json" if len(results) == 1 else f"results-{index}.json"
        files.append((name, f"data:application/json;base64,{base64.b64encode(raw).decode()}"))
    return files if sum(len(uri) for _, uri in files) <= RAW_LIMIT else []


def _about(rows: Sequence[Row]) -> str:
    """The models the page speaks of."""
    names = dict.fromkeys(f"{row.identity.model} (RWKV-{row.identity.version})" for row in rows)
    return ", ".join(names)
