"""The bundled checkpoints are small, safe to load, shaped as their cards say, and really predict Austen's English."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.bundled import HELDOUT, MODEL, SIBLINGS
from tests.oracle import Oracle

VOCAB, HEAD, END_OF_TEXT = 257, 64, 0
PASSAGE = slice(20_000, 20_512)

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Card:
    version: str
    path: Path
    layers: int
    width: int
    ffn: int
    parameters: int
    bytes: int


CARDS = [
    Card("4", SIBLINGS["4"], 2, 128, 256, 364_032, 800_000),
    Card("5.2", SIBLINGS["5.2"], 2, 128, 224, 381_184, 800_000),
    Card("6", SIBLINGS["6"], 2, 128, 192, 389_888, 800_000),
    Card("7", MODEL, 4, 192, 672, 1_852_608, 4_000_000),
]
every_model = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.version)


def bundled_weights(card: Card) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(card.path, weights_only=True, mmap=True)
    return weights


def oracle(card: Card) -> Oracle:
    """In float32 from the start: the package would normalise a float16 embedding table in float16."""
    return Oracle({name: tensor.float() for name, tensor in bundled_weights(card).items()}, card.version)


def attention(card: Card, layer: int) -> Shapes:
    """Tensors of one layer's `att`, without its square projections and norms."""
    width, per_head, vector = card.width, (card.width // HEAD, HEAD), (1, 1, card.width)
    if card.version == "4":
        return {"time_decay": (width,), "time_first": (width,)} | {f"time_mix_{n}": vector for n in "kvr"}
    if card.version == "5.2":
        return {"time_decay": per_head, "time_faaaa": per_head} | {f"time_mix_{n}": vector for n in "kvrg"}
    if card.version == "6":
        shapes = {"time_decay": vector, "time_faaaa": per_head} | {f"time_maa_{n}": vector for n in "xwkvrg"}
        shapes |= {"time_maa_w1": (width, 40), "time_maa_w2": (5, 8, width)}
        return shapes | {"time_decay_w1": (width, 8), "time_decay_w2": (8, width)}
    shapes = dict.fromkeys(("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a", "w0", "a0"), vector)
    shapes |= {"r_k": per_head} | ({"v0": vector} if layer else {})
    for name, rank in ({"w": 16, "a": 16, "g": 32} | ({"v": 16} if layer else {})).items():
        shapes |= {f"{name}1": (width, rank), f"{name}2": (rank, width)}
    return shapes


def feed_forward(card: Card) -> Shapes:
    """Tensors of one layer's `ffn`."""
    names = {"6": ("time_maa_k", "time_maa_r"), "7": ("x_k",)}.get(card.version, ("time_mix_k", "time_mix_r"))
    shapes: Shapes = dict.fromkeys(names, (1, 1, card.width))
    shapes |= {"key.weight": (card.ffn, card.width), "value.weight": (card.width, card.ffn)}
    return shapes | ({} if card.version == "7" else {"receptance.weight": (card.width, card.width)})


def declared_shapes(card: Card) -> Shapes:
    width = card.width
    shapes: Shapes = {"emb.weight": (VOCAB, width), "head.weight": (VOCAB, width)}
    norms = ["ln_out", "blocks.0.ln0"]
    square = ["receptance", "key", "value", "output"] + (["gate"] if card.version in ("5.2", "6") else [])
    for layer in range(card.layers):
        block = f"blocks.{layer}."
        norms += [block + "ln1", block + "ln2"] + ([block + "att.ln_x"] if card.version != "4" else [])
        shapes |= {f"{block}att.{name}": shape for name, shape in attention(card, layer).items()}
        shapes |= {f"{block}att.{name}.weight": (width, width) for name in square}
        shapes |= {f"{block}ffn.{name}": shape for name, shape in feed_forward(card).items()}
    return shapes | {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}


def bigram_nats(train: bytes, text: bytes) -> float:
    """Mean nats per byte of `text` under add-one-smoothed byte pairs counted in `train`."""
    pairs, firsts = Counter(pairwise(train)), Counter(train[:-1])
    alphabet = len(set(train))
    costs = [math.log((firsts[a] + alphabet) / (pairs[a, b] + 1)) for a, b in pairwise(text)]
    return sum(costs) / len(costs)


def test_held_out_text_is_plain_prose() -> None:
    text = HELDOUT.read_text("ascii")
    assert 32 * 1024 <= len(text) <= 64 * 1024
    assert "Mr. Knightley" in text
    assert not [line for line in text.splitlines() if line != line.strip()]
    assert "CHAPTER" not in text and "Gutenberg" not in text


@every_model
def test_names_shapes_dtypes_and_sizes_are_as_declared(card: Card) -> None:
    weights = bundled_weights(card)
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == declared_shapes(card)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert sum(tensor.numel() for tensor in weights.values()) == card.parameters
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    assert card.path.stat().st_size <= card.bytes


@every_model
def test_predicts_held_out_bytes_far_better_than_byte_pairs(card: Card) -> None:
    text = HELDOUT.read_bytes()
    passage = text[PASSAGE]
    logits = oracle(card).trace([byte + 1 for byte in passage[:-1]]).logits.astype(np.float64)
    log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    targets = np.frombuffer(passage[1:], np.uint8).astype(int) + 1
    nats = float((log_sum - logits[np.arange(len(targets)), targets]).mean())
    pairs = bigram_nats(text[: PASSAGE.start] + text[PASSAGE.stop :], passage)
    assert nats < 1.1
    assert nats < 0.5 * pairs


def test_end_of_text_opens_a_chapter_with_a_capital_letter_or_a_quotation() -> None:
    (card,) = (card for card in CARDS if card.path == MODEL)  # the siblings are too small to learn this
    logits = oracle(card).trace([END_OF_TEXT]).logits[0]
    openings = b'ABCDEFGHIJKLMNOPQRSTUVWXYZ"'
    likely = np.exp(logits - logits.max())
    assert likely[[byte + 1 for byte in openings]].sum() > 0.95 * likely.sum()


def test_every_sibling_has_a_card() -> None:
    assert {card.version: card.path for card in CARDS if card.path != MODEL} == SIBLINGS
