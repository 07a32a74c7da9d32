"""The option of Core ML targets that holds matrix states as two float16 tensors each, and when it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from exporter.contract import Job, ModelSpec
from runtimes import pairing
from runtimes.contract import TensorSpec
from runtimes.errors import WrongCall

STATE = "state"
HILO = "hilo"
HELP = "hilo: the recurrence's matrices as two float16 tensors each, for slow decays and long contexts"


def wanted(options: Mapping[str, str]) -> bool:
    """Whether matrices are to be held in two parts."""
    return options[STATE] == HILO


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Raise WrongCall where there are no matrices, or where float32 holds them."""
    if not wanted(options):
        return
    if not any(map(_is_matrix, spec.state)):
        raise WrongCall(
            f"RWKV-{spec.version} has no matrix as state: its sums are scaled by a running maximum, and fade with it",
            hint="leave out -O state=hilo",
        )
    if precision in ("fp32", "mixed"):
        raise WrongCall(
            f"{precision} keeps the state in float32, which is as good as two parts in float16",
            hint="add -p fp16, or leave out -O state=hilo",
        )


def chosen(job: Job) -> Job:
    """The job as it is to be done: with its state in pairs where they are wanted."""
    return replace(job, spec=in_pairs(job.spec)) if wanted(job.options) else job


def in_pairs(spec: ModelSpec) -> ModelSpec:
    """The model with two state tensors for each matrix, one after the other."""
    state = (pairing.paired(tensor) if _is_matrix(tensor) else (tensor,) for tensor in spec.state)
    return replace(spec, state=tuple(part for parts in state for part in parts))


def usage(job: Job) -> Mapping[str, str]:
    """A section of the artifact's README, where there is something to say."""
    return {"State in two parts": USAGE} if wanted(job.options) else {}


def _is_matrix(tensor: TensorSpec) -> bool:
    return len(tensor.shape) == 4


USAGE = f"""Every state tensor whose name ends in `{pairing.LOW}` is the low part of the one before it: what float16 has
no room for there. Between calls hand both over as they came, like any other state, and save both or none: one without
the other is not the state. The number that a pair stands for is `high + low / {int(pairing.SCALE)}`, in float32. For a
number of your own, `high` is that number in float16 and `low` is `(number - high) * {int(pairing.SCALE)}`."""
