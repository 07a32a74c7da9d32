"""The memory limit beside a decoded token: a plausible speed, the bytes by hand, and nothing for other processors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_exports import SIZES, exported

from runtimes import manifest
from runtimes.contract import Artifact
from runtimes.threads import VARIABLE
from validation import bandwidth
from validation.outcome import Identity, Latency, Method, Outcome, Samples, Traffic

ON_CPU = Identity("art", "tiny", "7", "onnx-cpu", "fp32", "ort:cpu", "ort:cpu", evidence="run")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = exported("7", "onnx-cpu", tmp_path_factory.mktemp("art"))
    return Artifact(folder, manifest.read(folder))


def test_the_speed_is_plausible_and_measured_once() -> None:
    bandwidth.read_speed.cache_clear()
    speed = bandwidth.read_speed(1, 16)
    assert 0.1 < speed < 2000
    assert bandwidth.read_speed(1, 16) == speed


def test_a_token_reads_the_weights_without_the_embedding_and_the_state(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bandwidth, "read_speed", lambda count: 10.0 * count)
    monkeypatch.setenv(VARIABLE, "3")
    found = bandwidth.traffic(artifact, ON_CPU, 2)
    assert found
    assert (found.limit_gb_per_s, found.threads) == (30.0, 3)
    state = sum(tensor.spec().nbytes for tensor in artifact.manifest.state)
    table = SIZES["vocab"] * SIZES["width"] * 4
    everything = 4 * artifact.manifest.model.parameters
    assert found.bytes_per_token == pytest.approx(everything - table + state, rel=0.05)
    monkeypatch.setenv(VARIABLE, "0")
    assert bandwidth.traffic(artifact, ON_CPU, 2) == replace(found, limit_gb_per_s=20.0, threads=2)


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"observed": "ort:cuda"},
        {"evidence": "emulated"},
        {"requested": "ssh://pi@board/ort:cpu"},
    ],
    ids=str,
)
def test_other_processors_have_no_limit_here(artifact: Artifact, elsewhere: dict[str, str]) -> None:
    assert bandwidth.traffic(artifact, replace(ON_CPU, **elsewhere), 2) is None


def test_shares_are_those_of_the_median_and_of_the_loop() -> None:
    samples = Samples((0.01,) * 4, 10.0, 10.0, 10.0, 0.0, 10.0, 1)
    row = Latency(ON_CPU, Outcome.PASS, (), decode=samples)
    assert (row.bandwidth, row.harness) == (None, None)
    measured = replace(
        row, traffic=Traffic(50_000_000, 10.0, 2), method=Method(16, True, wall_s=0.05, clock_step_s=0, clock_read_s=0)
    )
    assert measured.bandwidth == pytest.approx(0.5)  # 5 of 10 GB/s
    assert measured.harness == pytest.approx(0.2)


def test_where_onnx_is_not_installed_an_artifact_is_timed_without_it(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bandwidth, "find_spec", lambda name: None)
    assert bandwidth.traffic(artifact, ON_CPU, 2) is None
