"""The step in the Neural Engine's form: the same numbers for every version, and a program made as that engine asks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fake_core_ml
import numpy as np
import pytest
import torch

from exporter import graph
from exporter.contract import Spelling
from exporter.model import open_model
from exporter.passes import ane_form, mil_pieces
from exporter.passes.ane_form import Form
from exporter.progress import silent
from exporter.targets.coreml_ane import TARGETS
from runtimes import lookup, manifest
from runtimes.backends import coreml, mil
from runtimes.contract import Artifact
from runtimes.errors import BadArtifact, WrongCall
from runtimes.manifest import open_artifact
from runtimes.mil.package import Package
from tests.models import VERSIONS, random_checkpoint
from tests.unit.small_exports import TOKENS, exported, in_chunks, in_torch, stepping

pytestmark = pytest.mark.slow

CHUNK = 4
BOUND = 2e-5  # float32 against float32, in another order of summation
SIZES: dict[str, Any] = {"layers": 2, "width": 64, "head_size": 16, "vocab": 33, "ffn": 96}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 7 in float32 with a function for four tokens."""
    folder = tmp_path_factory.mktemp("whole")
    return exported("7", "coreml-ane", folder, layers=2, precision="fp32", prefill=(CHUNK,))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 5.2, whose decay is no input of its recurrence, with a function for up to four tokens."""
    folder, options = tmp_path_factory.mktemp("masked"), {"prefill": "masked"}
    return exported("5.2", "coreml-ane", folder, precision="fp32", prefill=(CHUNK,), options=options)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 4 in float16, whose running maximum starts far below what float16 can hold."""
    return exported("4", "coreml-ane", tmp_path_factory.mktemp("half"), layers=2, precision="fp16")


@pytest.mark.parametrize("tokens", [1, 32])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_form_computes_what_the_step_does(version: str, tokens: int, tmp_path: Path) -> None:
    torch.save(random_checkpoint(version, **SIZES, seed=5), tmp_path / "model.pth")
    model = open_model(tmp_path / "model.pth")
    step, spelling = model.build(Spelling()), TARGETS[0].spelling
    rewritten = model.build(spelling)
    for module in (step, rewritten):
        graph.load_weights(module, silent)
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(SIZES["vocab"], (tokens,), generator=generator)
    state = [torch.randn(tensor.shape, generator=generator) * 0.3 for tensor in model.spec.state]
    program = graph.trace(rewritten, graph.arguments(model.spec, tokens))
    form, kinds = Form(program, model.spec.layers, len(state)), len(state) // model.spec.layers
    row = torch.cat([program.state_dict[name][ids] for name in form.tables], 1)
    logits, *stacks = form(row, *(torch.cat(state[kind::kinds]) for kind in range(kinds)))
    wanted, *new = step(ids, *state)
    torch.testing.assert_close(logits[:, : SIZES["vocab"]], wanted, atol=BOUND, rtol=0)
    assert not logits[:, SIZES["vocab"] :].any()
    for kind, stack in enumerate(stacks):
        torch.testing.assert_close(stack, torch.cat(new[kind::kinds]), atol=BOUND, rtol=1e-5)


def test_a_package_steps_and_reads_prompts_as_torch_does(whole: Path) -> None:
    session = mil.open_session(open_artifact(whole), "cpu")
    wanted = in_torch(whole)
    assert stepping(session, wanted) < BOUND
    assert in_chunks(session, wanted, [CHUNK, 1, CHUNK, 1]) < BOUND


def test_a_masked_function_takes_prompts_of_any_length(masked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, prefill) = manifest.read(masked).graphs
    assert (prefill.tokens, prefill.up_to, prefill.mask) == (CHUNK, True, "mask")
    artifact, wanted = open_artifact(masked), in_torch(masked)
    for sizes in ([3, 3, 3, 1], [2] * 5, [4, 1, 3, 2]):
        calls = Calls(mil.open_session(artifact, "cpu"), monkeypatch)
        assert in_chunks(calls.session, wanted, sizes) < BOUND
        assert calls.sizes == [CHUNK if size > 1 else 1 for size in sizes]
    fake_core_ml.install(monkeypatch)
    assert in_chunks(coreml.open_session(artifact, "ane"), wanted, [3, 3, 3, 1]) < BOUND


class Calls:
    """A session, and the sizes of the graphs that it calls."""

    def __init__(self, session: Any, patch: pytest.MonkeyPatch) -> None:
        self.session, self.sizes = session, list[int]()
        for size, run in session._graphs.items():
            patch.setitem(session._graphs, size, partial(self._run, size, run))

    def _run(self, size: int, run: Any, *given: Any) -> Any:
        self.sizes.append(size)
        return run(*given)


def test_a_mask_of_another_type_is_refused(masked: Path) -> None:
    artifact = open_artifact(masked)
    decode, prefill = artifact.manifest.graphs
    wrong = Artifact(masked, replace(artifact.manifest, graphs=(decode, replace(prefill, mask=None))))
    with pytest.raises(BadArtifact, match="input mask"):
        mil.open_session(wrong, "cpu")


def test_float16_is_rounded_and_starts_at_a_finite_maximum(half: Path) -> None:
    session = mil.open_session(open_artifact(half), "cpu")
    assert {tensor.dtype for tensor in manifest.read(half).state} == {"float16"}
    trace = in_torch(half)
    state, found = session.initial_state(), []
    for token in TOKENS:
        step = session.step(token, state)
        state = step.state
        found.append(step.logits)
    error = np.abs(np.stack(found) - trace.logits).max()
    assert 0 < error < 5e-2


def test_products_are_convolutions_and_norms_are_whole(whole: Path, half: Path) -> None:
    for folder in (whole, half):
        for name in [each.function for each in manifest.read(folder).graphs]:
            function = Package(folder / "model.mlpackage").function(name)
            kinds = Counter(operation.kind for operation in function.operations)
            assert kinds["conv"] > 10
            assert not {"linear", "gather", "silu", "reduce_mean", "tile"} & set(kinds)
            for operation in function.operations:
                assert all(len(result.shape) <= 4 for result in operation.outputs.values()), operation


def test_what_goes_in_and_out_is_aligned_and_few(whole: Path) -> None:
    document = manifest.read(whole)
    assert [tensor.name for tensor in document.state] == [
        "blocks.*.att.shift",
        "blocks.*.att.wkv",
        "blocks.*.ffn.shift",
    ]
    function = Package(whole / "model.mlpackage").function("decode")
    ports = {**function.inputs, **function.output_types()}
    assert len(ports) == 2 + 2 * len(document.state)
    narrow = {name for name, port in ports.items() if port.shape[-1] % 32}
    assert narrow == {"att_wkv", "att_wkv_next"}  # of heads of 16 in this test, where real ones have 64


def test_a_wide_head_comes_in_parts_that_the_runtime_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    monkeypatch.setattr(ane_form, "WIDEST", 20)  # the vocabulary has 33
    folder = exported("7", "coreml-ane", tmp_path, layers=1, precision="fp32")
    (only,) = manifest.read(folder).graphs
    assert (only.output, only.output_rest) == ("logits_0", ("logits_1",))
    assert manifest.read(whole).graphs[0].output_rest == ()
    assert stepping(mil.open_session(open_artifact(folder), "cpu"), in_torch(folder)) < BOUND
    artifact = open_artifact(folder)
    swapped = replace(only, output="logits_1", output_rest=("logits_0",))
    wrong = Artifact(folder, replace(artifact.manifest, graphs=(swapped,)))
    assert stepping(mil.open_session(wrong, "cpu"), in_torch(folder)) > 0.1


def test_packages_of_some_layers_each_compute_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mil_pieces, "AUTO", 1e-9)  # GB: each layer by itself
    folder = exported("7", "coreml-ane", tmp_path, layers=3, precision="fp32", prefill=(CHUNK,))
    document = manifest.read(folder)
    assert [each.then for each in document.graphs] == [("model-2of3.mlpackage", "model-3of3.mlpackage")] * 2
    assert [tensor.name for tensor in document.state][3:5] == ["blocks.1+*.att.shift", "blocks.1+*.att.wkv"]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "dataType: .float32" in readme
    assert "byteCount: width * 4)" in readme
    assert "## Several packages" in readme
    session, wanted = mil.open_session(open_artifact(folder), "cpu"), in_torch(folder)
    assert stepping(session, wanted) < BOUND
    assert in_chunks(session, wanted, [CHUNK, 1, CHUNK, 1]) < BOUND


def test_packages_of_some_layers_are_refused_where_layers_look_tables_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mil_pieces, "AUTO", 1e-9)
    with pytest.raises(WrongCall, match="looks up tables in every layer"):
        exported("7a", "coreml-ane", tmp_path, layers=2, precision="fp32")


def test_a_manifest_that_lies_about_the_table_or_the_parts_is_refused(whole: Path) -> None:
    artifact = open_artifact(whole)
    first = artifact.manifest.graphs[0]
    assert first.lookup is not None
    lies = {
        "rows of 31 are": replace(first, lookup=replace(first.lookup, width=31)),
        "has no output logits_1": replace(first, output_rest=("logits_1",)),
        "the manifest says": replace(first, lookup=None, input_dtype="int32"),
    }
    for text, lie in lies.items():
        wrong = Artifact(whole, replace(artifact.manifest, graphs=(lie, *artifact.manifest.graphs[1:])))
        with pytest.raises(BadArtifact, match=text):
            mil.open_session(wrong, "cpu")
    missing = replace(first, lookup=replace(first.lookup, file="absent.bin"))
    manifest.write(replace(artifact.manifest, graphs=(missing,)), whole.parent)
    with pytest.raises(BadArtifact, match=r"absent\.bin"):
        manifest.read(whole.parent)


def test_the_table_is_mapped_not_read(whole: Path) -> None:
    artifact = open_artifact(whole)
    table = lookup.open_table(artifact, artifact.manifest.graphs[0])
    assert isinstance(table, np.memmap)
    assert table.shape == (artifact.manifest.model.vocab, 32)


def test_what_keeps_a_divisor_from_zero_is_raised_where_asked(tmp_path: Path) -> None:
    torch.save(random_checkpoint("7", **SIZES, seed=5), tmp_path / "model.pth")
    model = open_model(tmp_path / "model.pth")
    module = model.build(TARGETS[0].spelling)
    graph.load_weights(module, silent)
    program = graph.trace(module, graph.arguments(model.spec, 1))
    state = [torch.ones(2, *tensor.shape[1:]) for tensor in model.spec.state[:3]]
    as_is, raised = (
        Form(program, 2, 6, least=least)(program.state_dict["emb"][:1], *state)[0] for least in (0.0, 1e-4)
    )
    assert 0 < (as_is - raised).abs().max() < 1e-3
