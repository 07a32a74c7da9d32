"""The reference and an exported artifact against a checked-in trace of the bundled model on real text."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors import safe_open

import runtimes
from exporter import export, reference_session
from exporter.bundled import MODEL
from runtimes.contract import Array, Session
from tests.golden import make
from tests.oracle import trace_of

BOUND = 5e-5  # of a logit, fp32 against fp32
STATE_BOUND = 1e-5  # of a state tensor's largest value

Golden = dict[str, Array]


@pytest.fixture(scope="module")
def golden() -> Golden:
    with safe_open(make.FILE, framework="np") as file:
        assert file.metadata()["checkpoint_sha256"] == make.checkpoint_hash(), "run: python -m tests.golden.make"
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict


def test_the_file_is_small_and_whole(golden: Golden) -> None:
    assert make.FILE.stat().st_size < 200_000
    assert (golden["tokens"].shape, golden["logits"].shape) == ((32,), (32, 257))
    assert {name for name in golden if name.startswith("blocks.")} == {
        f"blocks.{layer}.{part}" for layer in (0, 3) for part in ("att.shift", "att.wkv", "ffn.shift")
    }


def test_the_rwkv_package_still_gives_it(golden: Golden) -> None:
    again = make.record()
    assert set(again) == set(golden)
    for name, array in golden.items():
        np.testing.assert_allclose(again[name], array, rtol=0, atol=1e-5 * np.abs(array).max(), err_msg=name)


def agrees(session: Session, golden: Golden) -> None:
    trace = trace_of(session, golden["tokens"].tolist())
    assert np.abs(trace.logits - golden["logits"]).max() <= BOUND
    for name in golden.keys() & trace.states.keys():
        error = np.abs(trace.states[name][-1] - golden[name]).max() / np.abs(golden[name]).max()
        assert error <= STATE_BOUND, name
    assert len(golden.keys() & trace.states.keys()) == 6


def test_the_reference_gives_it(golden: Golden) -> None:
    agrees(reference_session(MODEL), golden)


def test_an_onnx_artifact_gives_it(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> None:
    (folder,) = export(targets=["onnx-cpu"], out=tmp_path_factory.mktemp("golden"))
    agrees(runtimes.open_session(folder), golden)


def test_the_text_is_predicted(golden: Golden) -> None:
    """Real text, so that a trace of noise would be noticed: most bytes are among the model's likely ones."""
    ranks = (golden["logits"][:-1] > golden["logits"][np.arange(31), golden["tokens"][1:]][:, None]).sum(1)
    assert np.median(ranks) < 3
