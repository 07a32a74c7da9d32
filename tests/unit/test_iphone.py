"""The iphone runtime with stand-ins for coremltools' remote devices: feeds, clock, refusals. It shows no phone."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from coremltools.models.ml_program.experimental import async_wrapper, remote_device
from coremltools_quiet import coremltools
from small_exports import TOKENS, exported, in_torch, stepping

from runtimes import manifest
from runtimes.backends import iphone
from runtimes.contract import Array, Artifact
from runtimes.errors import BadArtifact, Missing, WrongCall
from runtimes.mil.evaluate import Evaluator
from runtimes.mil.package import Package

pytestmark = pytest.mark.slow

NANOSECONDS = 2_000_000


class Phone:
    """remote_device.Device, connected."""

    async def prepare_for_model_debugging(self, credentials: Any) -> Phone:
        assert credentials.development_team == "TEAM123"
        return self


class Remote:
    """MLModelAsyncWrapper of a device: exactly its inputs, outputs by name, and how long the phone says it took."""

    def __init__(self, path: str, weights_dir: str, compute_units: Any, function_name: str | None, device: Any) -> None:
        assert isinstance(device, Phone)
        assert compute_units is coremltools.ComputeUnit.CPU_AND_NE
        package = Package(Path(path))
        self.evaluator = Evaluator(package.function(function_name), package.weights)
        self.last_predict_duration_in_nano_seconds: int | None = None
        self.loaded = False

    async def load(self) -> None:
        self.loaded = True

    async def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        assert self.loaded
        outputs, _ = self.evaluator.run(inputs, {})
        self.last_predict_duration_in_nano_seconds = NANOSECONDS
        return {name: np.array(array) for name, array in outputs.items()}

    async def retrieve_compute_plan(self) -> Any:
        kinds = ["MLNeuralEngineComputeDevice"] * 3 + ["MLCPUComputeDevice"] + [None]
        used = [SimpleNamespace(preferred_compute_device=type(kind, (), {})()) if kind else None for kind in kinds]
        block = SimpleNamespace(operations=used)
        functions = {name: SimpleNamespace(block=block) for name in ("main", "decode", "prefill4")}
        return SimpleNamespace(
            model_structure=SimpleNamespace(program=SimpleNamespace(functions=functions)),
            get_compute_device_usage_for_mlprogram_operation=lambda operation: operation,
        )

    async def unload(self) -> None:
        self.loaded = False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("7", "coreml", tmp_path_factory.mktemp("phone"), prefill=(4,))


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Phone]]:
    """The iPhones that there are."""
    phones = [Phone()]
    monkeypatch.setenv(iphone.TEAM, "TEAM123")
    monkeypatch.setattr(remote_device.Device, "get_connected_devices", staticmethod(lambda device_type: phones))
    monkeypatch.setattr(async_wrapper.MLModelAsyncWrapper, "from_spec_or_path", staticmethod(Remote))
    yield phones


def opened(folder: Path) -> Artifact:
    return Artifact(folder, manifest.read(folder))


def test_the_phone_is_fed_what_the_model_takes_and_steps_take_what_it_says(
    folder: Path, connected: list[Phone]
) -> None:
    session = iphone.open_session(opened(folder), "ane")
    assert stepping(session, in_torch(folder)) < 1e-4
    step = session.step(TOKENS[0], session.initial_state())
    assert step.seconds == NANOSECONDS / 1e9
    assert session.prefill(TOKENS[:9], session.initial_state()).seconds == pytest.approx(3 * NANOSECONDS / 1e9)
    placed = session.placement()
    assert (placed.requested, placed.observed, placed.nodes) == ("iphone:ane", "iphone:ane", {"ane": 3, "cpu": 1})
    session.close()


def test_no_phone_a_damaged_package_and_kept_state_are_refused(
    folder: Path, connected: list[Phone], tmp_path: Path
) -> None:
    kept = manifest.read(folder)
    state = tuple(type(tensor)(**{**vars(tensor), "output": tensor.input}) for tensor in kept.state)
    with pytest.raises(WrongCall, match="keeps its state in Core ML"):
        iphone.open_session(Artifact(folder, type(kept)(**{**vars(kept), "state": state})), "ane")
    with pytest.raises(BadArtifact, match="the iPhone cannot load"):
        iphone.open_session(Artifact(tmp_path, kept), "ane")
    connected.clear()
    with pytest.raises(Missing, match="no iPhone is connected"):
        iphone.open_session(opened(folder), "ane")


def test_what_lacks_is_said_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.delenv(iphone.TEAM, raising=False)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    told.append(iphone.missing("ane"))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(iphone.shutil, "which", lambda name: None)
    told.append(iphone.missing("ane"))
    monkeypatch.setattr(iphone.shutil, "which", lambda name: "/usr/bin/xcrun")
    told.append(iphone.missing("ane"))
    monkeypatch.setenv(iphone.TEAM, "TEAM123")
    assert iphone.missing("ane") is None
    assert [word in (text or "") for word, text in zip(("Mac", "Xcode", iphone.TEAM), told, strict=True)] == [True] * 3
