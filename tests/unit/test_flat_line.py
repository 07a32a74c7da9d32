"""The flat-line benchmark: a quick run says what it was asked, and its transformer step is right and copies nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from runtimes.errors import CheckFailed, WrongCall

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
POSITIONS = [0, 40, 80, 120]
LAYERS, WIDTH, KV_HEADS, FLOAT = 2, 128, 1, 4
CAPACITY = 96


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One run as on the command line, in a home of its own: out, home, printed, document."""
    out, home = tmp_path_factory.mktemp("flat") / "out", tmp_path_factory.mktemp("home")
    command = [sys.executable, str(BENCHMARKS / "flat_line.py"), "--quick", "--out", str(out)]
    sizes = ["--tokens", "120", "--every", "40", "--window", "4", "--kv-heads", str(KV_HEADS)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    ran = subprocess.run(
        [*command, *sizes],
        cwd=home,
        env=environment | {"HOME": str(home), "RWKV_EXPORT_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    document = json.loads((out / "flat_line.json").read_text(encoding="utf-8"))
    return SimpleNamespace(out=out, home=home, printed=ran.stdout, document=document)


def windows(quick: SimpleNamespace, side: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = quick.document["windows"][side]
    return found


@pytest.mark.parametrize("side", ["rwkv", "transformer"])
def test_both_sides_are_timed_at_every_position_asked_for(quick: SimpleNamespace, side: str) -> None:
    assert [window["position"] for window in windows(quick, side)] == POSITIONS
    for window in windows(quick, side):
        assert len(window["samples_ms"]) == 4
        assert min(window["samples_ms"]) <= window["median_ms"] <= max(window["samples_ms"])
        assert min(window["samples_ms"]) > 0


def test_the_state_has_the_same_bytes_everywhere_and_those_of_the_manifest(quick: SimpleNamespace) -> None:
    by_hand = LAYERS * (2 * WIDTH + WIDTH * 64) * FLOAT  # two token shifts and a matrix of 64 a channel
    assert quick.document["rwkv"]["state_bytes"] == by_hand
    assert {window["carried_bytes"] for window in windows(quick, "rwkv")} == {by_hand}


def test_the_cache_grows_by_the_same_bytes_a_token(quick: SimpleNamespace) -> None:
    token = LAYERS * 2 * KV_HEADS * 64 * FLOAT  # keys and values
    carried = [window["carried_bytes"] for window in windows(quick, "transformer")]
    assert carried == [position * token for position in POSITIONS]


def test_the_models_have_as_many_parameters_and_the_run_says_how_it_was_made(quick: SimpleNamespace) -> None:
    document = quick.document
    assert document["transformer"]["parameters"] == pytest.approx(document["rwkv"]["parameters"], rel=0.02)
    assert document["transformer"]["error_in_std"] < 1e-4
    assert document["threads"] == 1
    assert document["machine"]["packages"]["onnxruntime"]
    assert document["choices"]["vocab"] == 257


def test_it_prints_every_position_and_writes_two_files_and_nothing_elsewhere(quick: SimpleNamespace) -> None:
    for position in POSITIONS:
        assert f" {position} " in quick.printed
    assert sorted(path.name for path in quick.out.iterdir()) == ["flat_line.json", "flat_line.png"]
    assert (quick.out / "flat_line.png").read_bytes().startswith(b"\x89PNG")
    assert list(quick.home.iterdir()) == []


@pytest.fixture(scope="module")
def flat() -> Iterator[SimpleNamespace]:
    """The benchmark's modules, found as a script in that folder finds them."""
    sys.path.insert(0, str(BENCHMARKS))
    from flat import prepare, sides, summary, transformer

    yield SimpleNamespace(prepare=prepare, sides=sides, summary=summary, transformer=transformer)
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def decoder(flat: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A decoder whose two heads share one of keys and values: model, path, and its runner's arguments."""
    shape = flat.transformer.Shape(LAYERS, WIDTH, vocab=97, kv_heads=KV_HEADS, capacity=CAPACITY, ffn=40)
    model = flat.transformer.make(shape)
    path = flat.transformer.export(model, tmp_path_factory.mktemp("decoder") / "decoder.onnx")
    return SimpleNamespace(model=model, path=path, opened=(path, shape.ports(), shape.cache_shape, shape.vocab))


def test_32_steps_agree_with_full_attention_in_torch(flat: SimpleNamespace, decoder: SimpleNamespace) -> None:
    side = flat.sides.Transformer(*decoder.opened)
    tokens = torch.randint(97, (32,), generator=torch.Generator().manual_seed(1))
    stepped = np.stack([side.feed(int(token), keep=True) for token in tokens])
    wanted = decoder.model.reference(tokens).numpy()
    assert np.abs(stepped - wanted).max() < 1e-4 * wanted.std()
    assert np.abs(stepped[1:] - wanted[:-1]).max() > 0.1 * wanted.std()


def test_a_token_in_a_filled_cache_agrees_and_writes_its_own_entries_only(
    flat: SimpleNamespace, decoder: SimpleNamespace
) -> None:
    side = flat.sides.Transformer(*decoder.opened)
    side.reach(CAPACITY - 1)
    for tensor in side.cache:
        tensor[:, :, -1] = 7.0
    before = [tensor.copy() for tensor in side.cache]
    logits = side.feed(5, keep=True)
    for old, new in zip(before, side.cache, strict=True):
        assert np.array_equal(old[:, :, :-1], new[:, :, :-1])
        assert not np.any(new[:, :, -1] == 7.0)
    past = [torch.from_numpy(tensor[:, :, :-1]) for tensor in before]
    wanted = decoder.model.reference(torch.tensor([5]), past).numpy()[0]
    assert np.abs(logits - wanted).max() < 1e-4 * wanted.std()


def test_a_decoder_that_disagrees_with_torch_is_refused(flat: SimpleNamespace, decoder: SimpleNamespace) -> None:
    assert flat.prepare.checked(decoder.model, decoder.path) < 1e-4
    weight = decoder.model.blocks[0].qkv.weight
    kept = weight.clone()
    weight[WIDTH:] *= 1.01  # keys and values
    with pytest.raises(CheckFailed, match="off by"):
        flat.prepare.checked(decoder.model, decoder.path)
    weight.copy_(kept)


@pytest.mark.parametrize(("width", "kv_heads", "wanted"), [(128, 3, 500_000), (96, 1, 500_000), (128, 2, 50_000)])
def test_sizes_without_a_fair_pair_are_refused(flat: SimpleNamespace, width: int, kv_heads: int, wanted: int) -> None:
    shape = flat.transformer.Shape(LAYERS, width, vocab=257, kv_heads=kv_heads, capacity=8)
    with pytest.raises(WrongCall):
        flat.transformer.sized_like(shape, wanted)


def test_a_crossing_is_where_every_later_position_is_slower_too(flat: SimpleNamespace) -> None:
    def window(position: int, milliseconds: float) -> Any:
        return flat.sides.Window(position, (9.0, milliseconds, 0.1), carried_bytes=8, rss_bytes=8)

    ours, theirs = (2.0, 2.0, 2.0, 4.0, 2.0), (1.0, 5.0, 2.0, 5.0, 3.5)  # ratios 0.5 2.5 1 1.25 1.75
    rows = [[window(10 * index, one) for index, one in enumerate(times)] for times in (ours, theirs)]
    facts = flat.summary.summary(flat.summary.Run(*rows, busy=0.0))
    assert facts["slower_from"] == {"1.0": 30, "1.5": 40, "2.0": None}
    assert facts["at_the_end"] == {"position": 40, "time_ratio": 1.75, "carried_ratio": 1.0}
