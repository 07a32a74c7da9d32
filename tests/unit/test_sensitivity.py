"""What quantising one matrix costs: the simulation beside what is exported, documents that go on, lists, the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from exporter import export, open_model
from exporter.contract import Spelling
from exporter.graph import arguments, load_weights
from exporter.model import Model
from exporter.models.layers import StepModel
from exporter.passes import torch_quantise
from exporter.passes.static_simulation import StaticSimulation
from exporter.progress import silent
from exporter.simulation import Spread
from exporter.vocabulary import encoded
from runtimes.contract import Array
from runtimes.errors import WrongCall
from tests.models import random_checkpoint
from validation import sensitivity, validate
from validation.quality import open_text
from validation.reports import sensitivity as page
from validation.sensitivity_reader import Reader
from validation.sensitivity_results import ALL, KEPT, Effect, Sensitivity, Subject, read, recommended, write

pytestmark = pytest.mark.slow

TOKENS = 48
LAYERS = 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sensitive") / "m.pth"
    torch.save(random_checkpoint("7", layers=LAYERS, width=64, head_size=32, vocab=257, ffn=96, seed=3), path)
    return path


@pytest.fixture(scope="module")
def found(checkpoint: Path) -> Sensitivity:
    return measured(checkpoint)


def measured(checkpoint: Path, precision: str = "int4", **arguments: object) -> Sensitivity:
    model = open_model(checkpoint)
    return sensitivity.measure(model, open_text(), precision=precision, tokens=TOKENS, **arguments)  # type: ignore[arg-type]


def kl_of_artifact(checkpoint: Path, folder: Path, keep: Sequence[str] = ()) -> float:
    """Mean KL of the artifact itself over the same text, as `validate` reads it."""
    options = {"keep": ",".join(keep)} if keep else {}
    (made,) = export(checkpoint, targets=["onnx-cpu"], precision="int4", options=options, out=folder)
    row = validate([made], checkpoint=checkpoint, steps=4, quality_tokens=TOKENS).quality[0]
    assert row.reading is not None
    return row.reading.kl_mean


def test_everything_costs_what_the_artifact_costs(checkpoint: Path, found: Sensitivity, tmp_path: Path) -> None:
    everything, kept = found.find(ALL), found.find(KEPT)
    assert everything is not None and kept is not None and found.keep
    assert everything.kl_mean == pytest.approx(kl_of_artifact(checkpoint, tmp_path), rel=0.02)
    with_keep = kl_of_artifact(checkpoint, tmp_path, found.keep)
    assert kept.kl_mean == pytest.approx(with_keep, rel=0.02)
    assert with_keep < 0.9 * everything.kl_mean


def test_every_matrix_and_every_layer_is_measured_once(found: Sensitivity) -> None:
    names = [effect.name for effect in found.effects]
    assert len(names) == len(set(names))
    assert {"head", "emb", "blocks.0", "blocks.1", "blocks.1.att.v.up", "blocks.0.ffn.value", ALL, KEPT} <= set(names)
    assert [layer.name for layer in found.layers] == [f"blocks.{i}" for i in range(LAYERS)]
    assert len(found.matrices) == 2 + 12 * LAYERS + 2  # no v in layer 0
    assert all(0 < effect.kl_mean <= effect.kl_p99 for effect in found.matrices)


def test_a_layer_costs_about_what_its_matrices_cost_together(found: Sensitivity) -> None:
    for layer in found.layers:
        alone = sum(each.kl_mean for each in found.matrices if each.name.startswith(f"{layer.name}."))
        assert 0.5 < layer.kl_mean / alone < 2


def test_the_quantiser_for_executorch_costs_what_its_step_costs(checkpoint: Path) -> None:
    found = measured(checkpoint, "8da4w", grow=1e-9)
    everything, model = found.find(ALL), open_model(checkpoint)
    assert everything is not None and found.keep == () and found.find(KEPT) is None
    plain, rounded = (cast(StepModel, model.build(Spelling())) for _ in range(2))
    load_weights(plain, silent)
    torch_quantise.quantise(rounded, model.spec, torch_quantise.PRESETS["8da4w"], silent)
    log_p, log_q = (log_softmax(logits_of(step, model), 1) for step in (plain, rounded))
    kl = float(np.sum(np.exp(log_p) * (log_p - log_q), 1).mean())
    assert everything.kl_mean == pytest.approx(kl, rel=0.02)


@torch.no_grad()
def logits_of(step: StepModel, model: Model) -> Array:
    """A token at a time, (TOKENS, V) float64."""
    _, *state = arguments(model.spec, 1)
    rows = []
    for token in encoded(model, open_text().content)[:TOKENS]:
        logits, *state = step(torch.tensor([token]), *state)
        rows.append(logits.numpy().astype(np.float64)[0])
    return np.stack(rows)


def test_a_run_that_was_stopped_goes_on_where_it_was(
    checkpoint: Path, found: Sensitivity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.json"

    def save(document: Sensitivity) -> None:
        write(document, path)
        if len(document.effects) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(checkpoint, save=save)
    assert len(read(path).effects) == 5
    again: list[str] = []
    real = Reader.effect
    monkeypatch.setattr(Reader, "effect", lambda self, name, stored: again.append(name) or real(self, name, stored))
    assert measured(checkpoint, known=path) == found
    assert again == [effect.name for effect in found.effects[5:]]


def test_a_document_of_something_else_is_not_continued(checkpoint: Path, found: Sensitivity, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    write(replace(found, subject=replace(found.subject, tokens=7)), path)
    with pytest.raises(WrongCall, match="or of another text"):
        measured(checkpoint, known=path)
    path.write_text("{}")
    with pytest.raises(WrongCall, match="is not a file of sensitivities"):
        measured(checkpoint, known=path)


def test_a_precision_that_nobody_simulates_is_refused_with_those_that_are(checkpoint: Path) -> None:
    with pytest.raises(WrongCall, match="no target quantises as 'fp32'") as refused:
        measured(checkpoint, "fp32")
    assert "onnx-cpu: int8" in str(refused.value.hint)


def effect(name: str, kl: float, *, parameters: int = 1000, nbytes: int = 500) -> Effect:
    return Effect(name, "4 bits", parameters, nbytes, kl, kl, 2.0, 1.0)


def test_the_most_kl_a_byte_is_kept_while_it_fits() -> None:
    subject = Subject("m", "7", "", 64e-5, "onnx-cpu", "int4", "t", "", 1, {})
    large, small = effect("large", 5.0, parameters=9000, nbytes=4500), effect("small", 2.0)
    tiny, cheap = effect("tiny", 0.001), effect("cheap", 1.0)
    document = Sensitivity(1, subject, "", 4, grow=1.2, effects=(large, small, tiny, cheap))
    assert recommended(document) == ("small", "cheap")  # the large one would add 31500 bytes to 6000
    assert recommended(replace(document, grow=10.0)) == ("large", "small", "cheap")  # tiny is under a hundredth
    assert recommended(replace(document, grow=0.1)) == ()
    assert recommended(replace(document, effects=(effect("exact", 0.0),))) == ()


def test_static_grids_round_to_the_steps_they_have() -> None:
    weight, spread = torch.eye(4) * 3.0, Spread((-1.0, 1.0), (-3.0, 3.0))
    made = StaticSimulation(4).matrix("w", weight, None, spread)
    assert made is not None
    out = made.product(torch.tensor([[1.0, 0.5, -1.0, 8.0]]))
    step = 6.0 / 15
    assert torch.allclose(out, torch.tensor([[7 * step, 3.5 * step, -7 * step, 7 * step]]), atol=2e-4)
    with pytest.raises(ValueError, match="spread of w"):
        StaticSimulation(8).matrix("w", weight, None, None)


def test_the_page_says_what_to_keep_and_loads_nothing(found: Sensitivity) -> None:
    text = page.render(found)
    assert page.render(found) == text
    assert f"-O keep={','.join(found.keep or ())}" in text
    assert "http" not in text.replace("http-equiv", "") and "<script" not in text
    assert all(f">{each.name}" in text for each in found.matrices)
    worse = [replace(each, kl_mean=9.0) if each.name == KEPT else each for each in found.effects]
    assert "brings nothing" in page.advice(replace(found, effects=tuple(worse)))
    unfinished = replace(found, effects=found.effects[:3], keep=None)
    assert "not measured to the end" in page.render(unfinished)
