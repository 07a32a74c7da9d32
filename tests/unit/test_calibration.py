"""Calibrated rounding: moments against products of recorded inputs, what GPTQ saves, the option from end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import exporter
from exporter import bundled, calibration
from exporter.contract import Spelling
from exporter.graph import arguments
from exporter.model import open_model
from exporter.models.layers import Linear
from exporter.models.parameters import materialise
from exporter.passes import onnx_quantise, torch_quantise
from exporter.passes.onnx_gptq import Compensated
from exporter.passes.onnx_quantise import PRESETS, quantise
from exporter.passes.onnx_rounding import ROWS, Blocks
from exporter.progress import silent
from exporter.vocabulary import encoded
from runtimes import manifest, open_session
from runtimes.errors import Missing, WrongCall
from tests.conftest import untraced
from tests.models import VERSIONS, random_checkpoint
from tests.unit.test_onnx_quantise import Array, gaussian, logits, mean_kl, opened, readable, save

pytestmark = pytest.mark.slow

SMALL = {"layers": 2, "width": 64, "head_size": 32, "vocab": 257, "ffn": 96}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    for version in VERSIONS:
        torch.save(random_checkpoint(version, **SMALL, seed=5), folder / f"{version}.pth")
    return folder


def one_by_one(path: Path, tokens: list[int]) -> dict[str, Array]:
    """What every linear takes, (T, K), when tokens come one at a time."""
    model = open_model(path)
    module, seen = model.build(Spelling()), {}
    for _ in materialise(module):
        pass
    for name, part in module.named_modules():
        if isinstance(part, Linear):
            rows = seen[f"{name}.weight"] = []
            part.register_forward_pre_hook(lambda _, given, rows=rows: rows.append(given[0].numpy()))
    _, *state = arguments(model.spec, 1)
    with torch.no_grad():
        for token in tokens:
            _, *state = module(torch.tensor([token]), *state)
    return {name: np.concatenate(rows) for name, rows in seen.items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_moments_are_those_of_what_linears_take_token_by_token(version: str, checkpoints: Path) -> None:
    path = checkpoints / f"{version}.pth"
    tokens = np.random.default_rng(1).integers(257, size=2 * calibration.CALL + 3).tolist()
    model = open_model(path)
    module = model.build(Spelling())
    moments = calibration.inputs_of(module, model.spec, tokens, silent)
    assert all(made.is_meta for made in module.parameters()) and not any(
        part._forward_pre_hooks or part._forward_hooks for part in module.modules()
    )
    wanted = {name: x.T @ x / len(tokens) for name, x in one_by_one(path, tokens).items()}
    assert moments.keys() == wanted.keys()
    for name, moment in moments.items():
        np.testing.assert_allclose(moment, wanted[name], rtol=1e-3, atol=1e-4 * np.abs(wanted[name]).max())


def correlated(count: int, k: int) -> Array:
    """Inputs (count, K) of a few causes, some inputs far louder than others."""
    causes = gaussian(count, max(k // 4, 1), seed=1) @ gaussian(max(k // 4, 1), k, seed=2)
    x: Array = (causes + 0.3 * gaussian(count, k, seed=3)) * np.exp(gaussian(k, seed=4))
    return x


@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("k", [7, 33, 160])
def test_compensation_lowers_the_error_of_the_product_and_keeps_the_layout(k: int, block: int) -> None:
    plain, x, matrix = Blocks(4, block), correlated(500, k), gaussian(ROWS + 3, k)
    matrix[5] = 0
    moment = x.T @ x / len(x)
    errors = {}
    for name, storage in (("plain", plain), ("compensated", Compensated(plain, lambda: moment))):
        made = dict(storage.round(matrix))
        assert {name: (a.dtype, a.shape) for name, a in made.items()} == dict(plain.tensors(*matrix.shape))
        lost = matrix - readable(plain, made, k)
        assert not lost[5].any()
        errors[name] = np.einsum("nk,kl,nl->n", lost, moment, lost)
    assert errors["compensated"].sum() < (0.9 if k == 7 else 0.5) * errors["plain"].sum()


@pytest.mark.parametrize("moment", [np.zeros((40, 40)), np.eye(40)], ids=["silent", "unrelated"])
def test_inputs_that_say_nothing_of_each_other_leave_rounding_as_it_was(moment: Array) -> None:
    plain, matrix = Blocks(4, 32), gaussian(9, 40)
    compensated = Compensated(plain, lambda: moment.astype(np.float32)).round(matrix)
    for name, tensor in plain.round(matrix).items():
        np.testing.assert_array_equal(compensated[name], tensor)


def test_a_moment_follows_inputs_that_were_made_quieter() -> None:
    inputs = correlated(500, 24)
    factors = np.exp2(np.arange(24) % 5 - 2).astype(np.float32)
    moment, quieter = inputs.T @ inputs, (inputs / factors).T @ (inputs / factors)
    by_name = torch_quantise._moment({"V": moment}, {"V": lambda: torch.from_numpy(factors)}, "V")
    for found in (onnx_quantise._moment(moment, lambda: factors), by_name):
        np.testing.assert_allclose(found, quieter, rtol=1e-4, atol=1e-4)


def test_logits_come_closer_on_text_that_calibration_did_not_read(tmp_path: Path) -> None:
    with untraced():
        model, graph = opened(bundled.SIBLINGS["4"])
    moments = calibration.inputs_of(
        model.build(Spelling()), model.spec, calibration.passage(lambda text: encoded(model, text))[:1024], silent
    )
    tokens = encoded(model, bundled.HELDOUT.read_text()[:400])
    reference = logits(save(graph.clone(), tmp_path / "fp32")[0], model, tokens)
    kl = {}
    for name, known in (("plain", {}), ("calibrated", moments)):
        quantised = graph.clone()
        quantise(quantised, PRESETS["int4"], known)
        kl[name] = mean_kl(reference, logits(save(quantised, tmp_path / name)[0], model, tokens))
    assert kl["calibrated"] < 0.9 * kl["plain"], kl


def test_the_passage_is_text_that_validate_does_not_read() -> None:
    text = bundled.HELDOUT.read_text()
    read: list[str] = []
    tokens = calibration.passage(lambda some: read.append(some) or [byte + 1 for byte in some.encode()])
    assert len(tokens) == calibration.TOKENS
    assert text.endswith(read[0]) and len(text) - len(read[0]) >= 20_000


def export(path: Path, out: Path, **options: str) -> Path:
    (folder,) = exporter.export(
        path, targets=["onnx-cpu"], precision="int4", out=out, options={"calibrate": "gptq", **options}
    )
    return folder


def test_an_export_says_so_and_differs_from_a_plain_one_in_values_alone(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stacked state puts every parameter's name below another module's, and has the same data."""
    monkeypatch.setattr(calibration, "TOKENS", 128)
    path, choices = checkpoints / "7.pth", ({}, {"state": "stacked"}, {"calibrate": "none"})
    with untraced():
        folders = [export(path, tmp_path / str(number), **chosen) for number, chosen in enumerate(choices)]
    assert manifest.read(folders[0]).target.options["calibrate"] == "gptq"
    calibrated, stacked, plain = ((folder / "model.onnx.data").read_bytes() for folder in folders)
    assert calibrated == stacked != plain
    assert len(calibrated) == len(plain)
    session = open_session(folders[0])
    assert np.isfinite(session.step(5, session.initial_state()).logits).all()


@pytest.mark.parametrize("precision, vocab, reason", [("int8", 257, "int8 stores no"), ("int4", 101, "no known")])
def test_what_cannot_be_calibrated_is_refused(precision: str, vocab: int, reason: str, tmp_path: Path) -> None:
    torch.save(random_checkpoint("7", **{**SMALL, "vocab": vocab}), tmp_path / "x.pth")
    with pytest.raises(WrongCall, match=reason):
        exporter.export(
            tmp_path / "x.pth",
            targets=["onnx-cpu"],
            precision=precision,
            out=tmp_path / "out",
            options={"calibrate": "gptq"},
        )
    assert not (tmp_path / "out").exists()


def test_a_pile_vocabulary_without_its_file_is_refused(tmp_path: Path) -> None:
    torch.save(random_checkpoint("4", **{**SMALL, "vocab": 50277}), tmp_path / "pile.pth")
    with pytest.raises(Missing, match="not beside the checkpoint"):
        encoded(open_model(tmp_path / "pile.pth"), "text")
