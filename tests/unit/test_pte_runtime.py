"""The pte runtime by both of its roads on the CPU: numbers, purity, threads, refusals, and where it says it ran."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from runtimes import manifest, threads
from runtimes.backends import pte
from runtimes.contract import Array, Artifact, Session, State
from runtimes.errors import BadArtifact, Missing, WrongCall
from runtimes.pte import plan
from runtimes.pte.program import Program
from runtimes.pte.runner import build
from runtimes.pte.wheel import bindings
from tests.unit import small_pte

pytestmark = pytest.mark.slow

DIRECT = pytest.param("cpu-direct", marks=pytest.mark.skipif(build.missing() is not None, reason=str(build.missing())))
roads = pytest.mark.parametrize("device", ["cpu", DIRECT])
TOKENS = [3, 1, 4, 1, 5, 2, 6]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_pte.write(tmp_path_factory.mktemp("inside"))


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_pte.write(tmp_path_factory.mktemp("separate"), ids=torch.int32, separate=True)


def expected(tokens: list[int]) -> tuple[Array, ...]:
    """What torch computes: the last logits and the state."""
    state = [torch.full(tensor.shape, tensor.fill) for tensor in small_pte.STATE]
    with torch.no_grad():
        logits, *state = small_pte.Step().eval()(torch.tensor(tokens), *state)
    return logits[0].numpy(), *(tensor.numpy() for tensor in state)


def assert_right(session: Session, logits: Array, state: State, tokens: list[int]) -> None:
    found = (logits, *session.read_state(state).values())
    for one, other in zip(found, expected(tokens), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@roads
def test_stepping_and_prompts_give_what_torch_gives(artifact: Artifact, device: str) -> None:
    session = pte.open_session(artifact, device)
    state = session.initial_state()
    for token in TOKENS:
        step = session.step(token, state)
        state = step.state
    assert_right(session, step.logits, state, TOKENS)
    prompt = session.prefill(TOKENS, session.initial_state())  # by calls of 3, 3 and 1
    assert_right(session, prompt.logits, prompt.state, TOKENS)


@roads
def test_weights_in_a_file_of_their_own_and_narrow_token_ids(separate: Artifact, device: str, tmp_path: Path) -> None:
    session = pte.open_session(separate, device)
    prompt = session.prefill(TOKENS, session.initial_state())
    assert_right(session, prompt.logits, prompt.state, TOKENS)
    (tmp_path / "model.pte").write_bytes((separate.folder / "model.pte").read_bytes())
    with pytest.raises((BadArtifact, Missing), match=r"model\.pte|decode"):
        pte.open_session(small_pte.describe(tmp_path, "int32"), device)


PROGRAM = """
import sys
from pathlib import Path
from runtimes import open_session
session = open_session(Path(sys.argv[1]), "pte:cpu-direct")
step = session.step(3, session.initial_state())
addresses = [{array.ctypes.data for array in step.state}]
for token in (1, 2, 3, 4):
    step = session.step(token, step.state)
    addresses.append({array.ctypes.data for array in step.state})
assert addresses[1] == addresses[3] and addresses[2] == addresses[4] and not addresses[1] & addresses[2]
print(session.placement().observed, "torch" in sys.modules, len(step.logits))
"""


@pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))
def test_the_direct_road_imports_no_torch_and_steps_between_two_states(artifact: Artifact) -> None:
    manifest.write(artifact.manifest, artifact.folder)
    command = [sys.executable, "-c", PROGRAM, str(artifact.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.stdout.split() == ["pte:cpu-direct", "False", str(small_pte.VOCAB)], done.stderr
    assert done.stderr == ""


@roads
def test_a_state_stays_what_it_was_when_it_is_stepped_from(artifact: Artifact, device: str) -> None:
    session = pte.open_session(artifact, device)
    first = session.step(1, session.initial_state())
    before, logits = session.read_state(first.state), first.logits.copy()
    again = [session.step(2, first.state), session.prefill([2, 3, 4], first.state), session.step(2, first.state)]
    np.testing.assert_array_equal(again[0].logits, again[2].logits)
    np.testing.assert_array_equal(first.logits, logits)
    for name, kept in session.read_state(first.state).items():
        np.testing.assert_array_equal(kept, before[name])
    assert_right(session, again[1].logits, again[1].state, [1, 2, 3, 4])


@roads
def test_states_of_another_session_are_taken(artifact: Artifact, device: str) -> None:
    one, other = (pte.open_session(artifact, device) for _ in range(2))
    step = other.step(4, one.step(3, one.initial_state()).state)
    assert_right(other, step.logits, step.state, [3, 4])


@roads
def test_a_closed_session_refuses(artifact: Artifact, device: str) -> None:
    session = pte.open_session(artifact, device)
    state = session.initial_state()
    session.close()
    with pytest.raises(WrongCall, match="the session is closed"):
        session.step(0, state)


@roads
def test_the_number_of_threads_is_obeyed_until_nobody_uses_it(
    artifact: Artifact, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count in (3, 1):
        monkeypatch.setenv(threads.VARIABLE, str(count))
        session = pte.open_session(artifact, device)
        assert bindings()._threadpool_get_thread_count() == count
        step = session.step(3, session.initial_state())
        assert_right(session, step.logits, step.state, [3])
        monkeypatch.setenv(threads.VARIABLE, "2")
        with pytest.raises(WrongCall, match=f"open on {count}"):
            pte.open_session(artifact, device)
        session.close()


@roads
def test_a_manifest_of_other_shapes_is_refused(artifact: Artifact, device: str) -> None:
    document = artifact.manifest
    wider = dataclasses.replace(document.state[1], shape=(1, 2, 3))
    state = (document.state[0], wider, document.state[2])
    for changed, said in (
        (dataclasses.replace(document, state=state), "seen in model.pte is 16 bytes"),
        (dataclasses.replace(document, state=document.state[:2]), "takes 3 state tensors, the manifest lists 2"),
        (dataclasses.replace(document, model=dataclasses.replace(document.model, vocab=9)), "logits in model.pte"),
    ):
        with pytest.raises(BadArtifact, match=said):
            pte.open_session(Artifact(artifact.folder, changed), device)


@roads
def test_a_delegate_that_is_not_there_and_no_program_are_refused(
    artifact: Artifact, device: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes((artifact.folder / "model.pte").read_bytes().replace(b"XnnpackBackend", b"OtherpkBackend"))
    with pytest.raises(Missing, match="needs the delegate OtherpkBackend"):
        pte.open_session(small_pte.describe(tmp_path), device)
    for content in (b"no program at all", b"\xff\xff\0\0ET12" + bytes(64)):
        path.write_bytes(content)
        with pytest.raises(BadArtifact, match="is not an ExecuTorch program"):
            pte.open_session(small_pte.describe(tmp_path), device)


@roads
def test_placement_is_read_from_the_program(artifact: Artifact, device: str) -> None:
    placed = pte.open_session(artifact, device).placement()
    assert placed.observed == placed.requested == f"pte:{device}"
    assert placed.nodes["XnnpackBackend"] >= 1
    assert placed.nodes["aten::embedding"] == 1
    assert placed.evidence == "run"


def test_a_place_is_not_reported_without_its_delegate(artifact: Artifact) -> None:
    placed = pte.open_session(artifact, "openvino").placement()
    assert (placed.requested, placed.observed) == ("pte:openvino", "pte:cpu")


def test_calls_are_those_that_executorch_reads(artifact: Artifact) -> None:
    path = artifact.folder / "model.pte"
    found, parsed = plan.calls(path), Program(path)
    assert set(found) == set(small_pte.METHODS)
    for method, calls in found.items():
        assert calls == parsed.calls(method)


def test_an_artifact_without_a_single_token_graph_is_refused(artifact: Artifact) -> None:
    document = dataclasses.replace(artifact.manifest, graphs=artifact.manifest.graphs[1:])
    with pytest.raises(BadArtifact, match="no single-token graph"):
        pte.open_session(Artifact(artifact.folder, document), "cpu")


def test_places_of_delegates_that_the_wheel_lacks_say_so() -> None:
    assert pte.missing("cpu") is None
    assert pte.missing("vulkan") == "this executorch was built without the delegate VulkanBackend"


def test_kernels_of_quantised_tables_are_loaded() -> None:
    names = bindings()._get_operator_names()
    assert {"quantized_decomposed::embedding_byte.out", "quantized_decomposed::embedding_4bit.out"} <= set(names)


def test_manifests_of_programs_may_lack_a_function(artifact: Artifact) -> None:
    graph = manifest.Graph(1, "model.pte", "tokens", "int64", "logits")
    document = dataclasses.replace(artifact.manifest, graphs=(graph,))
    with pytest.raises(BadArtifact, match="forward"):  # the name that ExecuTorch gives a sole method
        pte.open_session(Artifact(artifact.folder, document), "cpu")
