"""Opens a checkpoint as a model: its version, its spec, its tuned initial state; exports nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from exporter import bundled, versions
from exporter.checkpoint import Checkpoint, check_finite, open_checkpoint
from exporter.contract import ModelSpec, Spelling, Version, Weights
from exporter.models.parameters import materialise
from runtimes import manifest
from runtimes.backends.eager import runner
from runtimes.contract import Array, Placement, Session, TensorSpec
from runtimes.errors import BadCheckpoint, WrongCall
from runtimes.session import ExplicitSession

LN_X_EPS = 64e-5  # official inference code; training's 1e-5 after a division by 8 is the same thing


@dataclass(frozen=True)
class Model:
    """A checkpoint that was recognised and checked. `initial` holds tuned state tensors by state name."""

    checkpoint: Checkpoint
    version: Version
    spec: ModelSpec
    initial: Mapping[str, Array]

    def build(self, spelling: Spelling) -> nn.Module:
        """The step module, its parameters on the meta device."""
        return self.version.build(self.spec, self.checkpoint, spelling)

    def facts(self) -> manifest.Model:
        """What the manifest says of the model; `parameters` counts the checkpoint's values, tuned states aside."""
        spec, weights = self.spec, self.checkpoint
        return manifest.Model(
            name=weights.name,
            version=spec.version,
            layers=spec.layers,
            width=spec.width,
            heads=spec.heads,
            head_size=spec.head_size,
            vocab=spec.vocab,
            ln_x_eps=spec.ln_x_eps,
            parameters=sum(weights[name].numel() for name in weights if not name.endswith(".time_state")),
        )


def open_model(
    checkpoint: str | Path | None = None, *, ln_x_eps: float | None = None, state: str | Path | None = None
) -> Model:
    """Recognise a checkpoint (default: the bundled model); `state` names a file of tuned `time_state` tensors.

    Raises BadCheckpoint, WrongCall or Missing.
    """
    if ln_x_eps is not None and not 0 < ln_x_eps < 1:
        raise WrongCall(f"ln_x eps {ln_x_eps} is not between 0 and 1", hint="official models use 64e-5")
    opened = open_checkpoint(checkpoint or bundled.MODEL)
    version, name = versions.identify(opened)
    spec = version.spec(name, opened, LN_X_EPS if ln_x_eps is None else ln_x_eps)
    return Model(opened, version, spec, _initial(opened, None if state is None else open_checkpoint(state), spec))


def _initial(weights: Weights, separate: Weights | None, spec: ModelSpec) -> dict[str, Array]:
    """Tuned states by state name, from the separate file where given, else from the checkpoint itself; all or none."""
    places = {t.name.removesuffix("wkv") + "time_state": t for t in spec.state if t.name.endswith(".wkv")}
    own, other = ({name for name in found if name.endswith(".time_state")} for found in (weights, separate or {}))
    if separate is not None and not other & places.keys():
        listing = ", ".join(list(separate)[:3])
        raise BadCheckpoint(
            f"the state file has no time_state of this RWKV-{spec.version} model; it has {listing}",
            hint="a state file has blocks.0.att.time_state and so on; v4 has no tunable state",
        )
    if own and other:
        raise WrongCall("the checkpoint has tuned states of its own", hint="leave the state file out")
    if not own and not other:
        return {}
    if odd := sorted((own or other) ^ places.keys()):
        what = "is missing from" if odd[0] in places else "does not belong to"
        raise BadCheckpoint(f"{odd[0]} {what} the tuned states of this RWKV-{spec.version} of {spec.layers} layers")
    source = weights if separate is None else separate
    return {tensor.name: _oriented(name, source[name], tensor) for name, tensor in places.items()}


def _oriented(name: str, tuned: torch.Tensor, tensor: TensorSpec) -> Array:
    """`time_state` is stored (H, value, key) by every version's training code: v5 and v6 transpose it when loading."""
    if tuple(tuned.shape) != tensor.shape[1:]:
        raise BadCheckpoint(f"{name} has shape {tuple(tuned.shape)}, expected {tensor.shape[1:]}")
    check_finite(name, tuned)
    turned = tuned.transpose(1, 2) if tensor.axes[-1] == "value" else tuned
    array: Array = turned.to(torch.float32).contiguous().numpy().reshape(tensor.shape)
    return array


def reference_session(checkpoint: str | Path, *, ln_x_eps: float | None = None) -> Session:
    """The checkpoint itself, stepped by torch in float32 on the CPU: what every artifact is compared with."""
    model = open_model(checkpoint, ln_x_eps=ln_x_eps)
    module = model.build(Spelling())
    for _ in materialise(module):
        pass

    placed = Placement(requested="reference:cpu", observed="reference:cpu")
    return ExplicitSession(model.spec.state, model.initial, model.spec.vocab, {1: runner(module)}, lambda: placed)
