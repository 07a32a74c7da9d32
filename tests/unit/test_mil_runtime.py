"""The mil runtime: sessions over Core ML artifacts are pure, feed prompts right, and refuse a wrong manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mil_models
import numpy as np
import pytest
from mil_models import LAYERS, TOKENS, VOCAB, WIDTH, largest_difference, torch_steps

from runtimes import registry
from runtimes.backends import mil
from runtimes.contract import Artifact, Placement, Session, State
from runtimes.errors import BadArtifact
from runtimes.manifest import Graph, Manifest, Model, Precision, Source, StateTensor, Target, Tokenizer
from runtimes.mil.package import Package
from runtimes.mil.program import Constant

FILE = "model.mlpackage"
STEP = Graph(1, FILE, "tokens", "int32", "logits", "decode")
PREFILL = Graph(3, FILE, "tokens", "int32", "logits", "prefill")
MEMORY = StateTensor(
    "memory",
    (LAYERS, WIDTH, WIDTH),
    "float32",
    ("layer", "key", "value"),
    0.0,
    "memory_in",
    "memory_out",
)
KEPT = replace(MEMORY, dtype="float16", input="memory", output="memory")


def artifact(folder: Path, state: StateTensor, *graphs: Graph) -> Artifact:
    """The package in `folder` with a manifest that says so."""
    manifest = Manifest(
        schema=1,
        model=Model("small", "0", LAYERS, WIDTH, 1, WIDTH, VOCAB, 1e-5, 0),
        source=Source("none", "none", 0, ""),
        target=Target("coreml", "mil", "cpu", "fp16", "fp16"),
        precision=Precision("float16", "float16"),
        graphs=graphs,
        state=(state,),
        tokenizer=Tokenizer("none"),
        files=(),
        tools={},
    )
    return Artifact(folder, manifest)


@pytest.fixture(scope="module")
def explicit(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Two functions of one package; the state goes in and out."""
    folder = tmp_path_factory.mktemp("explicit")
    step = mil_models.save(folder / "step.mlpackage", precision="fp16")
    prefill = mil_models.save(folder / "prefill.mlpackage", tokens=3, precision="fp16")
    mil_models.save_functions(folder / FILE, decode=step, prefill=prefill)
    return artifact(folder, MEMORY, STEP, PREFILL)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """One function that keeps its state."""
    folder = tmp_path_factory.mktemp("kept")
    mil_models.save_stateful(folder / FILE)
    return artifact(folder, KEPT, replace(STEP, function=None))


@pytest.fixture(params=["explicit", "kept"])
def session(request: pytest.FixtureRequest) -> Session:
    return mil.open_session(request.getfixturevalue(request.param), "cpu")


def stepped(session: Session, state: State) -> list[tuple[Any, Any]]:
    results = []
    for token in TOKENS:
        step = session.step(token, state)
        state = step.state
        results.append((step.logits[None], session.read_state(state)["memory"]))
    return results


def test_the_registry_finds_it() -> None:
    runtime, device = registry.require("mil")
    assert (runtime.READS, device) == ((".mlpackage", ".pte"), "cpu")


def test_steps_agree_with_torch(session: Session) -> None:
    assert 1e-4 < largest_difference(stepped(session, session.initial_state()), torch_steps()) < 5e-3


def test_stepping_is_pure(session: Session) -> None:
    first = session.step(5, session.initial_state())
    before = session.read_state(first.state)
    once, again = session.step(9, first.state), session.step(9, first.state)
    np.testing.assert_array_equal(once.logits, again.logits)
    np.testing.assert_array_equal(session.read_state(first.state)["memory"], before["memory"])
    assert np.any(session.read_state(once.state)["memory"] != before["memory"])


def test_a_state_that_was_read_can_be_written_back(session: Session) -> None:
    state = session.step(5, session.initial_state()).state
    copy = session.write_state(session.read_state(state))
    np.testing.assert_array_equal(session.step(9, copy).logits, session.step(9, state).logits)


def test_a_prompt_in_chunks_agrees_with_stepping(explicit: Artifact) -> None:
    session = mil.open_session(explicit, "cpu")
    prompt = session.prefill([*TOKENS, 11], session.initial_state())
    state = session.initial_state()
    for token in (*TOKENS, 11):
        step = session.step(token, state)
        state = step.state
    np.testing.assert_allclose(prompt.logits, step.logits, atol=1e-3)
    np.testing.assert_allclose(
        session.read_state(prompt.state)["memory"], session.read_state(state)["memory"], atol=1e-3
    )


def test_placement_counts_operations(kept: Artifact) -> None:
    function = Package(kept.folder / FILE).function(None)
    expected = Placement("mil:cpu", "mil:cpu", {"MIL ops": len(function.operations)}, evidence="interpreted")
    assert mil.open_session(kept, "cpu").placement() == expected


def test_functions_share_their_constants(explicit: Artifact) -> None:
    package = Package(explicit.folder / FILE)

    def weights(function: str) -> list[Constant]:
        found = [item for item in package.function(function).operations if item.kind == "linear"]
        return [constant for item in found for constant in item.arguments["weight"]]  # type: ignore[misc]

    shared = set(weights("decode"))
    assert set(weights("prefill")) == shared
    assert len(shared) == 5 * LAYERS + 1
    assert package.weights.wide(weights("decode")[0]) is package.weights.wide(weights("prefill")[0])


@pytest.mark.parametrize(
    ("graph", "state", "reason"),
    [
        (replace(STEP, function="decoder"), MEMORY, "no function 'decoder'"),
        (replace(STEP, output="scores"), MEMORY, "has no output scores"),
        (replace(STEP, input="ids"), MEMORY, r"input ids of model\.mlpackage is absent"),
        (replace(STEP, tokens=2), MEMORY, r"input tokens .* is int32\[1\], the manifest says int32\[2\]"),
        (replace(STEP, input_dtype="int64"), MEMORY, r"the manifest says int64\[1\]"),
        (replace(STEP, file="other.mlpackage"), MEMORY, "Manifest.json does not name"),
        (STEP, replace(MEMORY, dtype="float16"), r"memory_in .* is float32\[2, 16, 16\], the manifest says float16"),
        (STEP, replace(MEMORY, output="memory"), "output memory .* is absent"),
        (STEP, replace(MEMORY, output="memory_in"), "input memory_in .* the manifest says absent"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    graph: Graph, state: StateTensor, reason: str, explicit: Artifact
) -> None:
    with pytest.raises(BadArtifact, match=reason):
        mil.open_session(artifact(explicit.folder, state, graph), "cpu")


def test_logits_of_another_vocabulary_are_refused(kept: Artifact) -> None:
    manifest = replace(kept.manifest, model=replace(kept.manifest.model, vocab=VOCAB + 1))
    with pytest.raises(BadArtifact, match=r"output logits .* is float16\[1, 48\], the manifest says float16\[1, 49\]"):
        mil.open_session(replace(kept, manifest=manifest), "cpu")


def test_it_reads_packages_without_loading_converters() -> None:
    import subprocess
    import sys

    code = "import sys; from runtimes.backends import mil; from runtimes.mil import protobuf; protobuf.parse_model(b'')"
    listing = "; print([name for name in ('coremltools', 'torch') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code + listing], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
