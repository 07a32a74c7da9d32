"""What the parts of cpu_peers.py exchange: kinds of engines, prepared models, measured rows; computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from runtimes.errors import RwkvExportError

OURS, FUSED, PTE, DIRECT = "ours", "ours, fused", "ours, ExecuTorch", "ours, ExecuTorch direct"
LLAMA, RWKV_CPP = "llama.cpp", "rwkv.cpp"


@dataclass(frozen=True)
class Own:
    """One of our engines: an artifact in a place.

    prefill: graph sizes beside 1
    names:   what the target calls our presets, where it calls them otherwise
    """

    target: str
    place: str
    prefill: tuple[int, ...]
    names: Mapping[str, str] = field(default_factory=dict)


ONNX = partial(Own, "onnx-cpu", prefill=(16, 64, 256))
XNNPACK = partial(
    Own,
    "executorch-xnnpack",
    prefill=(64,),
    names={"int8": "8da8w", "int4": "8da4w", "int4-b128": "8da4w-b128"},
)

MINE = {OURS: ONNX("ort:cpu"), FUSED: ONNX("ort:cpu-fused"), PTE: XNNPACK("pte:cpu"), DIRECT: XNNPACK("pte:cpu-direct")}
"""Our engines: two artifacts, each in two places."""

PAIRS = {"fp32": "F32", "fp16": "F16", "int8": "Q8_0", "int4": "Q4_0", "int4-b128": "Q4_0", "int4-int8": "Q4_0"}
"""Our precisions and the formats of about as many bits they are compared with; b128 has a scale for 128 weights where
Q4_0 has one for 32."""

EQUALS = PAIRS | {name: PAIRS[preset] for own in MINE.values() for preset, name in own.names.items()}
"""The same by what our targets call their precisions."""

EXACT = "F16"
"""The format by which a peer's conversion of the model is judged, before anything is quantised."""

UNQUANTISED = ("fp32", "fp16", "F32", EXACT)
"""Whose logits are the reference's but for rounding."""


def called(engine: str, preset: str) -> str:
    """What an engine calls the precision that stands against this preset of ours."""
    return MINE[engine].names.get(preset, preset) if engine in MINE else PAIRS[preset]


@dataclass(frozen=True)
class Prepared:
    """A model in an engine's own form.

    file_bytes:      of everything the engine opens
    bytes_per_token: weights that one decoded token reads; of the embedding table it reads a row, which is left out
    """

    path: Path
    file_bytes: int
    bytes_per_token: int


class Kind(Protocol):
    """One of MINE, LLAMA, RWKV_CPP; every method raises a RwkvExportError that becomes the row's reason."""

    @property
    def name(self) -> str: ...
    def prepare(self, checkpoint: Path, precision: str) -> Prepared: ...
    def command(self, model: Path, threads: int) -> list[str | Path]: ...
    def environment(self, threads: int) -> dict[str, str]: ...


@dataclass(frozen=True)
class Absent:
    """An engine that this machine does not have: its rows say so."""

    name: str
    reason: RwkvExportError

    def prepare(self, checkpoint: Path, precision: str) -> Prepared:
        raise self.reason

    def command(self, model: Path, threads: int) -> list[str | Path]:
        raise self.reason

    def environment(self, threads: int) -> dict[str, str]:
        raise self.reason


@dataclass(frozen=True)
class Conversion:
    """How closely a peer computes the model with 16-bit weights; a peer that is not close is not measured.

    missing: why there is no answer, or why it will not do
    errors:  as a row's
    version, system: as the engine tells them
    """

    size: str
    engine: str
    missing: str | None
    errors: Mapping[str, float]
    version: str = ""
    system: str = ""


@dataclass(frozen=True)
class Row:
    """One engine with one model at one number of threads.

    missing: why there are no numbers; then there are none
    memory:  bytes: peak_rss after all rounds; rss, anonymous, file: resident at that time; base_rss: before loading
    errors:  "step" and "prefill": norm of the logits' difference from our float32 reference over the reference's norm
    cores:   processors it kept busy while decoding
    samples: "decode" or "prefill N" -> rounds -> seconds
    """

    size: str
    threads: int
    engine: str
    precision: str
    missing: str | None = None
    load_seconds: float | None = None
    file_bytes: int | None = None
    bytes_per_token: int | None = None
    memory: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    cores: float | None = None
    samples: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Bandwidth:
    """Read speed of memory; pages is "4K", "2M" or "default", method "C" or "numpy"."""

    threads: int
    pages: str
    gb_per_s: float
    method: str
