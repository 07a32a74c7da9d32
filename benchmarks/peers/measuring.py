"""One comparison: every engine loaded in a process of its own, checked against the reference, asked in turn."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from exporter.model import reference_session
from peers.contract import EXACT, UNQUANTISED, Conversion, Kind, Prepared, Row, called
from peers.protocol import MODES, Engine, environment, resident, tokens
from peers.rwkvcpp import worker_environment
from runtimes.contract import Array
from runtimes.errors import CheckFailed, RwkvExportError

CHECKED = 16  # tokens after which logits are compared
CLOSE = 0.01  # relative error allowed to 16-bit weights, whose conversion is judged; about 0.0005 was seen
UNRELATED = 0.7  # nor may quantised logits be further off; two unrelated vectors are 1.4 apart
REPEATS = 3  # prompts a round
SETTLE = 0.05  # seconds in which the thread pool of the engine before falls asleep


def tell(text: str) -> None:
    """Say what goes on, on stderr."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Setting:
    """What is measured, and where files go. `reference`: logits of the float32 model after CHECKED tokens."""

    size: str
    threads: int
    checkpoint: Path
    reference: Array
    measures: dict[str, str]
    rounds: int
    cache: Path

    @property
    def title(self) -> str:
        return f"{self.size}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass
class Competitor:
    """One engine in the race; `missing` once it is out of it."""

    kind: Kind
    precision: str
    missing: str | None = None
    prepared: Prepared | None = None
    engine: Engine | None = None
    errors: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    samples: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)
    busy: list[tuple[float, float]] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.kind.name} {self.precision}"

    @contextmanager
    def racing(self) -> Iterator[None]:
        """Whatever goes wrong with this engine inside the block takes it, and only it, out of the race."""
        try:
            yield
        except RwkvExportError as error:
            self.missing = error.message + (f" ({error.hint})" if error.hint else "")
            self.stop()

    def start(self, setting: Setting) -> Engine:
        """Prepare, load and check. Raises RwkvExportError."""
        self.prepared = self.kind.prepare(setting.checkpoint, self.precision)
        tell(f"{setting.title}: loading {self.title}")
        log = setting.cache / "logs" / f"{self.title.replace(' ', '-')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        env = environment(worker_environment() | self.kind.environment(setting.threads))
        command = self.kind.command(self.prepared.path, setting.threads)
        self.engine = Engine(self.title, command, env=env, log=log)
        self.errors = {mode: self._error(self.engine, mode, setting) for mode in MODES}
        allowed = CLOSE if self.precision in UNQUANTISED else UNRELATED
        worst = max(self.errors.values())
        if not worst <= allowed:  # NaN is not
            raise CheckFailed(
                f"{self.title} computes another function: its logits are {worst:.2%} off the reference, "
                f"where {allowed:.0%} is allowed"
            )
        return self.engine

    def ask(self, measure: str, request: str) -> tuple[float, ...]:
        """The samples of one turn; notes how busy the processors were while decoding."""
        assert self.engine
        used, start = cpu_seconds(self.engine.pid), time.perf_counter()
        seconds = tuple(self.engine.seconds(request))
        if measure == "decode":
            self.busy.append((cpu_seconds(self.engine.pid) - used, time.perf_counter() - start))
        return seconds

    def stop(self) -> None:
        """End its process."""
        if self.engine:
            self.engine.close()
            self.engine = None

    def _error(self, engine: Engine, mode: str, setting: Setting) -> float:
        path = setting.cache / "logits.f32"
        engine.ask(f"logits {mode} {CHECKED} {path.resolve()}")
        return relative_error(np.fromfile(path, np.float32), setting.reference)


def cpu_seconds(pid: int) -> float:
    """Processor time a process has used; 0 where it is gone, which its next answer tells."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def relative_error(logits: Array, reference: Array) -> float:
    """Norm of the difference over norm of the reference; NaN where shapes differ or values are not finite."""
    if logits.shape != reference.shape or not np.isfinite(logits).all():
        return float("nan")
    return float(np.linalg.norm(logits - reference) / np.linalg.norm(reference))


def reference_logits(checkpoint: Path, cache: Path) -> Array:
    """Logits of the float32 model after CHECKED tokens, kept beside the checkpoint."""
    path = cache / f"{checkpoint.stem}.{CHECKED}.npy"
    if path.exists() and path.stat().st_mtime >= checkpoint.stat().st_mtime:
        kept: Array = np.load(path, allow_pickle=False)
        return kept
    session = reference_session(checkpoint)
    state, logits = session.initial_state(), np.zeros(0, np.float32)
    vocab = session.step(0, state).logits.size
    for token in tokens(CHECKED, vocab):
        step = session.step(token, state)
        state, logits = step.state, step.logits
    np.save(path, logits, allow_pickle=False)
    return logits


def line_up(kinds: Sequence[Kind], presets: Sequence[str]) -> list[Competitor]:
    """Ours beside the peers of equal bits, preset by preset: the order in which they are asked."""
    wanted = [(kind, called(kind.name, preset)) for preset in presets for kind in kinds]
    once = {(kind.name, precision): Competitor(kind, precision) for kind, precision in wanted}
    return list(once.values())


def judge_conversion(kind: Kind, setting: Setting) -> Conversion:
    """The peer with 16-bit weights, loaded, checked against the reference, and stopped again."""
    exact, ready = Competitor(kind, EXACT), {}
    with exact.racing():
        ready = exact.start(setting).ready
    exact.stop()
    told = {name: str(ready.get(name, "")) for name in ("version", "system")}
    return Conversion(setting.size, kind.name, exact.missing, exact.errors, **told)


def compare(
    kinds: Sequence[Kind], presets: Sequence[str], conversions: Sequence[Conversion], setting: Setting
) -> list[Row]:
    """Every engine's row. Within a round all are asked for one measure before any is asked for the next."""
    everyone = line_up(kinds, presets)
    refused = {conversion.engine: conversion.missing for conversion in conversions}
    try:
        for competitor in everyone:
            competitor.missing = refused.get(competitor.kind.name)
            if competitor.missing is None:
                with competitor.racing():
                    competitor.start(setting)
        for turn in range(setting.rounds + 1):
            tell(f"{setting.title}: " + (f"round {turn} of {setting.rounds}" if turn else "warming up"))
            _play(everyone, setting.measures, warm=turn == 0)
        return [_finish(competitor, setting) for competitor in everyone]
    finally:
        for competitor in everyone:
            competitor.stop()


def _play(everyone: Sequence[Competitor], measures: dict[str, str], *, warm: bool) -> None:
    for measure, request in measures.items():
        for competitor in everyone:
            if competitor.missing is not None:
                continue
            time.sleep(SETTLE)
            with competitor.racing():
                seconds = competitor.ask(measure, request)
                if not warm:
                    competitor.samples.setdefault(measure, []).append(seconds)


def _finish(competitor: Competitor, setting: Setting) -> Row:
    ready: dict[str, Any] = {}
    with competitor.racing():
        if competitor.engine:
            ready = competitor.engine.ready
            competitor.memory = resident(competitor.engine.pid)
    if competitor.missing is not None or not competitor.prepared:
        return Row(setting.size, setting.threads, competitor.kind.name, competitor.precision, competitor.missing)
    if "base_rss_bytes" in ready:
        competitor.memory["base_rss_bytes"] = int(ready["base_rss_bytes"])
    return Row(
        size=setting.size,
        threads=setting.threads,
        engine=competitor.kind.name,
        precision=competitor.precision,
        load_seconds=ready["load_seconds"],
        file_bytes=competitor.prepared.file_bytes,
        bytes_per_token=competitor.prepared.bytes_per_token,
        memory=competitor.memory,
        errors=competitor.errors,
        cores=sum(used for used, _ in competitor.busy) / sum(wall for _, wall in competitor.busy),
        samples={measure: tuple(rounds) for measure, rounds in competitor.samples.items()},
    )
