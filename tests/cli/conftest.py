"""A command line run within the test process, and results files to read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from rwkv_export.main import run
from validation import outcome
from validation.outcome import (
    Bound,
    Identity,
    Latency,
    Machine,
    Outcome,
    Parity,
    Quality,
    Reading,
    Results,
    Samples,
    TextReading,
)


@dataclass(frozen=True)
class Said:
    """What a command line left: its exit code and what it printed."""

    code: int
    out: str
    err: str


Cli = Callable[..., Said]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: str | Path) -> Said:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return call


def identity(name: str, *, observed: str = "ort:cpu") -> Identity:
    return Identity(name, "tiny", "7", "onnx-cpu", "fp32", "ort:cpu", observed, evidence="run" if observed else "")


def parity(name: str, verdict: Outcome = Outcome.PASS, *reasons: str, error: float = 2e-6) -> Parity:
    reading = Reading(
        max_abs=(error / 2, error, error, error),
        rel_std=(error, error, error, error),
        sqnr_db=(100.0, 99.0, 99.0, 99.0),
        kl=(1e-12, 2e-12, 2e-12, 2e-12),
        top1=1.0,
        top10=1.0,
        first_divergent=None,
        state_max_abs={"blocks.0.att.wkv": error},
        state_rel={"blocks.0.att.wkv": error},
    )
    bound = Bound("fp32", max_abs=5e-5, kl=1e-9, top1=1.0, state_rel=5e-5, reason="summation order")
    if verdict is Outcome.MISSING:
        return Parity(identity(name, observed=""), verdict, reasons, steps=0)
    return Parity(identity(name), verdict, reasons, 4, bound, reading, reading, {"1": 0.0})


def latency(name: str, milliseconds: float, *warnings: str) -> Latency:
    seconds = tuple(milliseconds / 1000 * (1 + 0.001 * index) for index in range(40))
    samples = Samples(seconds, milliseconds, milliseconds, milliseconds, 0.01, milliseconds, tokens=1)
    return Latency(identity(name), Outcome.PASS, (), 0.1, 0.01, decode=samples, warnings=warnings)


def quality(name: str, verdict: Outcome = Outcome.PASS, *reasons: str, kl: float = 7e-4) -> Quality:
    reading = TextReading(1024, 4100, kl, 0.0123, 2.3456, 2.3411, 0.9871)
    bound = Bound("int8", max_abs=2.0, kl=0.1, top1=1.0, state_rel=0.3, reason="rounded weights", text_kl=2e-3)
    return Quality(identity(name), verdict, reasons, "novel.txt", bound, reading, 1_930_000, 3_750_000)


def results(*rows: Parity | Quality | Latency) -> Results:
    machine = Machine("Linux", "a processor", 2, 1 << 30, "", "3.11", {})
    return outcome.collected(rows, machine)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(name: str, *rows: Parity | Quality | Latency) -> Path:
        outcome.write(results(*rows), tmp_path / name)
        return tmp_path / name

    return save
