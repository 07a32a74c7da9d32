"""What a runtime implements and a harness may rely on; needs numpy only, because it is copied to devices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NewType, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from runtimes.manifest import Manifest

Array = NDArray[Any]
State = NewType("State", object)
"""Opaque: only the session that made it looks inside, so it may stay on the device."""

HALF_FILL = -6.0e4
"""Stand-in for v4's -1e30 in float16, whose most negative finite value is -65504."""


@dataclass(frozen=True)
class TensorSpec:
    """One named state tensor of the step function.

    name:  "blocks.3.att.wkv"
    shape: (1, 12, 64, 64); matrices keep rank 4 because an NPU compiler silently miscomputes rank 3
    dtype: numpy name, "float32"
    axes:  ("batch", "head", "value", "key") in v7; v5 and v6 have key before value
    fill:  the initial value; v4's running maximum starts at -1e30 and must be finite in dtype
    scale: of the low part of the tensor before it only: the state is that one plus this one times `scale`
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    fill: float = 0.0
    scale: float | None = None

    def stored_as(self, dtype: str) -> TensorSpec:
        """The same tensor in another float dtype, its fill kept finite there."""
        fill = max(self.fill, HALF_FILL) if dtype == "float16" else self.fill
        return replace(self, dtype=dtype, fill=fill)

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def initial(self) -> Array:
        """A fresh initial tensor of `shape`."""
        return np.full(self.shape, self.fill, self.dtype)


@dataclass(frozen=True)
class Step:
    """The outcome of one call.

    logits:  (vocab,) float32, for the last token that was fed
    state:   the state after that token
    seconds: wall time, measured as near the device as the runtime can
    """

    logits: Array
    state: State
    seconds: float


@dataclass(frozen=True)
class Placement:
    """Where the work really ran.

    requested: "ort:cpu"
    observed:  the same form, read back from the runtime, e.g. "ort:cpu"; a session that fell back says where it ran
    nodes:     graph nodes (or ops, or delegates) per unit, e.g. {"CPUExecutionProvider": 325}
    evidence:  "run" by the target's own runtime on such a device, "emulated" by the vendor's emulator or reference
               model or on an emulated processor, or "interpreted" by ours; the latter two are proof of the numbers, not
               of any speed
    """

    requested: str
    observed: str
    nodes: Mapping[str, int] = field(default_factory=dict)
    evidence: Literal["run", "emulated", "interpreted"] = "run"


class Session(Protocol):
    """A loaded artifact. Not thread-safe. A State stays valid after it was stepped from: stepping is pure."""

    def initial_state(self) -> State: ...
    def step(self, token: int, state: State) -> Step: ...
    def prefill(self, tokens: Sequence[int], state: State) -> Step: ...
    def read_state(self, state: State) -> dict[str, Array]: ...
    def write_state(self, arrays: Mapping[str, Array]) -> State: ...
    def placement(self) -> Placement: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Artifact:
    """A verified artifact folder: every file's size and hash agree with the manifest."""

    folder: Path
    manifest: Manifest


class Runtime(Protocol):
    """A module runtimes/backends/<name>.py; vendor packages are imported inside its functions.

    READS:   endings of the graph files it opens, e.g. (".onnx",)
    DEVICES: what may follow the colon in "ort:cpu"; the first is the default
    """

    READS: tuple[str, ...]
    DEVICES: tuple[str, ...]

    def missing(self, device: str) -> str | None:
        """Why `device` cannot be used on this machine, as a sentence, or None."""

    def open_session(self, artifact: Artifact, device: str) -> Session:
        """Load the artifact's graphs onto `device`; raises Missing or BadArtifact."""
