"""A connected iPhone through coremltools' experimental remote devices, from a Mac with Xcode; timed on the phone.

Not for state that Core ML keeps: remote models have none.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtimes.contract import Array, Artifact, Placement, Session, State, Step
from runtimes.core_ml import Chain, most, preferred, runner
from runtimes.errors import BadArtifact, Missing, WrongCall
from runtimes.session import ExplicitSession, explicit_session

READS = (".mlpackage",)
DEVICES = ("ane", "gpu", "cpu")

UNITS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}
TEAM = "RWKV_EXPORT_APPLE_TEAM"
"""The development team that signs the app which coremltools builds for the phone."""


def missing(device: str) -> str | None:
    """A Mac with Xcode 16 and a development team; whether a phone is connected shows when it is asked for."""
    if platform.system() != "Darwin":
        return "an iPhone is reached from a Mac with Xcode only; mil:cpu interprets the same package anywhere"
    if shutil.which("xcrun") is None:
        return "Xcode is not installed"
    if not os.environ.get(TEAM):
        return f"{TEAM} does not say which development team signs the app that runs models"
    return None


def open_session(artifact: Artifact, device: str) -> Session:
    """Build the app, start it on the first connected iPhone and load every function there for `device`.

    Raises WrongCall for an artifact whose state Core ML keeps, Missing without a connected iPhone, and BadArtifact for
    a package that the phone refuses.
    """
    manifest = artifact.manifest
    if any(tensor.input == tensor.output for tensor in manifest.state):
        raise WrongCall(
            f"{artifact.folder.name} keeps its state in Core ML, which models on a remote device cannot",
            hint="export it without -O state=mlstate",
        )
    loop = asyncio.new_event_loop()
    phone = _phone(loop)
    chains = {
        graph.tokens: Chain(artifact, graph, lambda path, function: _Model(path, function, phone, device, loop))
        for graph in manifest.graphs
    }
    runs = {graph.tokens: runner(chains[graph.tokens], graph, artifact) for graph in manifest.graphs}
    models = [model for chain in chains.values() for model in chain.models]

    def close() -> None:
        for model in models:
            model.unload()
        loop.close()

    session = explicit_session(artifact, runs, lambda: _placement(chains[1], device), close)
    return _Timed(session, lambda: sum(model.spent() for model in models))


def _phone(loop: asyncio.AbstractEventLoop) -> Any:
    from coremltools.models.ml_program.experimental import remote_device as remote

    phones = remote.Device.get_connected_devices(device_type=remote.DeviceType.IPHONE)
    if not phones:
        raise Missing("no iPhone is connected", hint="unlock it, trust this Mac, and turn its developer mode on")
    credentials = remote.AppSigningCredentials(development_team=os.environ[TEAM])
    return loop.run_until_complete(phones[0].prepare_for_model_debugging(credentials=credentials))


class _Model:
    """One function of a package on the phone, called and waited for."""

    def __init__(
        self, path: Path, function: str | None, phone: Any, device: str, loop: asyncio.AbstractEventLoop
    ) -> None:
        import coremltools as ct
        from coremltools.models.ml_program.experimental.async_wrapper import MLModelAsyncWrapper

        self._loop, self._nanoseconds, self.function_name = loop, 0, function
        units = getattr(ct.ComputeUnit, UNITS[device])
        try:
            self._there = MLModelAsyncWrapper.from_spec_or_path(
                str(path), weights_dir="", compute_units=units, function_name=function, device=phone
            )
            loop.run_until_complete(self._there.load())
        except Exception as error:  # coremltools raises its own private class, ValueError and subprocess errors
            raise BadArtifact(f"the iPhone cannot load {path}: {error}", hint="export again") from error

    def predict(self, feed: dict[str, Array]) -> dict[str, Array]:
        """All outputs by name."""
        made: dict[str, Array] = self._loop.run_until_complete(self._there.predict(feed))
        self._nanoseconds += int(self._there.last_predict_duration_in_nano_seconds or 0)
        return made

    def spent(self) -> float:
        """Seconds that the phone took for predictions since this was last asked."""
        spent, self._nanoseconds = self._nanoseconds / 1e9, 0
        return spent

    def plan(self) -> Any:
        """The phone's MLComputePlan."""
        return self._loop.run_until_complete(self._there.retrieve_compute_plan())

    def unload(self) -> None:
        """Let the phone forget the model."""
        self._loop.run_until_complete(self._there.unload())


class _Timed:
    """A session whose steps take what the phone says that its predictions took, without the way there and back."""

    def __init__(self, session: ExplicitSession, spent: Callable[[], float]) -> None:
        self._session, self._spent = session, spent
        self.initial_state, self.read_state = session.initial_state, session.read_state
        self.write_state, self.placement, self.close = session.write_state, session.placement, session.close

    def step(self, token: int, state: State) -> Step:
        """One token."""
        return replace(self._session.step(token, state), seconds=self._spent())

    def prefill(self, tokens: Sequence[int], state: State) -> Step:
        """A prompt of any length >= 1."""
        return replace(self._session.prefill(tokens, state), seconds=self._spent())


def _placement(chain: Chain, device: str) -> Placement:
    nodes: Counter[str] = Counter()
    for model in chain.models:
        nodes += preferred(model.plan(), model.function_name or "main")
    return Placement(f"iphone:{device}", f"iphone:{most(nodes)}", dict(nodes))
