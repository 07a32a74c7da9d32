"""The bundled checkpoint is small, safe to load, shaped as its card says, and really predicts Austen's English."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import torch

from exporter.bundled import HELDOUT, MODEL
from tests.oracle import Oracle

LAYERS, WIDTH, HEAD, FFN, VOCAB = 4, 192, 64, 672, 257
END_OF_TEXT = 0


def bundled_weights() -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(MODEL, weights_only=True, mmap=True)
    return weights


def declared_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"emb.weight": (VOCAB, WIDTH), "head.weight": (VOCAB, WIDTH)}
    norms = ["ln_out", "blocks.0.ln0"]
    for layer in range(LAYERS):
        att, ffn = f"blocks.{layer}.att.", f"blocks.{layer}.ffn."
        norms += [f"blocks.{layer}.ln1", f"blocks.{layer}.ln2", att + "ln_x"]
        adapters = {"w": 16, "a": 16, "g": 32} | ({"v": 16} if layer else {})
        for name, rank in adapters.items():
            shapes |= {f"{att}{name}1": (WIDTH, rank), f"{att}{name}2": (rank, WIDTH)}
            if name != "g":
                shapes[f"{att}{name}0"] = (1, 1, WIDTH)
        shapes |= {f"{att}{name}": (1, 1, WIDTH) for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a")}
        shapes |= {f"{att}{name}.weight": (WIDTH, WIDTH) for name in ("receptance", "key", "value", "output")}
        shapes |= {att + "r_k": (WIDTH // HEAD, HEAD), ffn + "x_k": (1, 1, WIDTH)}
        shapes |= {ffn + "key.weight": (FFN, WIDTH), ffn + "value.weight": (WIDTH, FFN)}
    return shapes | {f"{norm}.{part}": (WIDTH,) for norm in norms for part in ("weight", "bias")}


def bigram_nats(train: bytes, text: bytes) -> float:
    """Mean nats per byte of `text` under add-one-smoothed byte pairs counted in `train`."""
    pairs, firsts = Counter(pairwise(train)), Counter(train[:-1])
    alphabet = len(set(train))
    costs = [math.log((firsts[a] + alphabet) / (pairs[a, b] + 1)) for a, b in pairwise(text)]
    return sum(costs) / len(costs)


def test_files_stay_small_enough_to_ship() -> None:
    assert MODEL.stat().st_size <= 4_000_000
    assert 32 * 1024 <= HELDOUT.stat().st_size <= 64 * 1024


def test_names_shapes_and_dtypes_are_as_declared() -> None:
    weights = bundled_weights()
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == declared_shapes()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert sum(tensor.numel() for tensor in weights.values()) == 1_852_608
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_held_out_text_is_plain_prose() -> None:
    text = HELDOUT.read_text("ascii")
    assert "Mr. Knightley" in text
    assert not [line for line in text.splitlines() if line != line.strip()]
    assert "CHAPTER" not in text and "Gutenberg" not in text


def test_predicts_held_out_bytes_far_better_than_byte_pairs() -> None:
    text = HELDOUT.read_bytes()
    start, length = 20_000, 768
    passage = text[start : start + length]
    trace = Oracle(bundled_weights(), "7").trace([byte + 1 for byte in passage[:-1]])
    logits = trace.logits.astype(np.float64)
    log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    targets = np.frombuffer(passage[1:], np.uint8).astype(int) + 1
    nats = float((log_sum - logits[np.arange(length - 1), targets]).mean())
    pairs = bigram_nats(text[:start] + text[start + length :], passage)
    assert nats < 1.1
    assert nats < 0.5 * pairs


def test_end_of_text_opens_a_chapter_with_a_capital_letter_or_a_quotation() -> None:
    logits = Oracle(bundled_weights(), "7").trace([END_OF_TEXT]).logits[0]
    openings = b'ABCDEFGHIJKLMNOPQRSTUVWXYZ"'
    likely = np.exp(logits - logits.max())
    assert likely[[byte + 1 for byte in openings]].sum() > 0.95 * likely.sum()
