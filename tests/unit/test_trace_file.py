"""Trace files: what is read is what was written, and nothing else is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scipy.special import softmax
from scipy.stats import entropy
from small_rnn import VOCAB, session

from runtimes import manifest
from runtimes.contract import Array
from runtimes.errors import CheckFailed, WrongCall
from validation import trace_file
from validation.metrics import compare_prediction, compare_step
from validation.trace import Likeliest, Trace, choose_tokens, record, shortened, spaced
from validation.trace_file import KEY, About

TOKENS = choose_tokens(24, vocab=VOCAB, seed=0)
ABOUT = About(
    schema=1,
    model="small",
    version="4",
    vocab=VOCAB,
    ln_x_eps=1e-5,
    source=manifest.Source("small.pth", "pth", 12, "ab" * 32),
    text="novel.txt",
    bytes=23,
    seed=0,
    whole=(),
    positions=(),
    tensors={},
    tools={},
)


def recorded(likeliest: int = 10) -> Trace:
    return record(session("float32"), TOKENS, keep=spaced(24, 7), likeliest=likeliest)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "small.safetensors"
    trace_file.write(recorded(), ABOUT, path)
    return path


def same(one: Trace, other: Trace) -> bool:
    def rows(trace: Trace) -> list[object]:
        parts = [
            (part.ids.tolist(), part.logits.tolist(), part.logsumexp, part.spread, part.vocab)
            if isinstance(part, Likeliest)
            else part.tolist()
            for part in trace.logits
        ]
        states = {at: {name: array.tolist() for name, array in state.items()} for at, state in trace.states.items()}
        return [trace.tokens, parts, states]

    return rows(one) == rows(other)


def test_what_is_read_is_what_was_written(file: Path) -> None:
    trace, about = trace_file.read(file)
    assert same(trace, recorded())
    assert trace.name == "small.safetensors"
    assert trace.kept == (6, 13, 20, 23)
    assert (about.whole, about.positions) == ((6, 13, 20, 23), (6, 7, 13, 14, 20, 21, 23, 24))
    assert dataclasses.replace(about, whole=(), positions=(), tensors={}) == ABOUT
    for said in ("local at 4 of 24 steps", "9 of 25 positions", "all logits at 4 steps", "the 11 that count most"):
        assert said in trace.gaps


def test_the_same_trace_gives_the_same_bytes(file: Path, tmp_path: Path) -> None:
    trace_file.write(recorded(), ABOUT, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


def test_a_start_of_one_value_takes_the_room_of_one(file: Path) -> None:
    assert load_file(file)["start.blocks.0.att.wkv"].shape == (1, 1, 1, 1)
    trace, _ = trace_file.read(file)
    assert trace.states[0]["blocks.0.att.wkv"].shape == (1, 2, 3, 3)
    assert np.all(trace.states[0]["blocks.0.att.pp"] == np.float32(-1e30))


def test_logits_are_kept_whole_where_that_is_no_longer(tmp_path: Path) -> None:
    whole = recorded(likeliest=VOCAB)
    assert not any(isinstance(logits, Likeliest) for logits in whole.logits)
    trace_file.write(whole, ABOUT, tmp_path / "whole.safetensors")
    assert same(trace_file.read(tmp_path / "whole.safetensors")[0], whole)


def rewritten(
    file: Path,
    path: Path,
    *,
    change: Callable[[dict[str, object]], None] | None = None,
    tensors: Callable[[dict[str, Array]], None] | None = None,
    rehash: bool = False,
) -> Path:
    """The file with other tensors, another document, and hashes that fit again where wanted."""
    arrays = load_file(file)
    header = file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")]
    document = json.loads(json.loads(header)["__metadata__"][KEY][64:])
    if tensors:
        tensors(arrays)
    if rehash:
        document["tensors"] = {
            name: hashlib.sha256(f"{array.dtype.name} {array.shape}\n".encode() + array.tobytes()).hexdigest()
            for name, array in arrays.items()
        }
    if change:
        change(document)
    text = json.dumps(document)
    save_file(arrays, path, {KEY: hashlib.sha256(text.encode()).hexdigest() + text})
    return path


def set_to(key: str, value: object) -> Callable[[dict[str, object]], None]:
    return lambda document: document.update({key: value})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_to("schema", 2), "schema is 2, this version reads 1"),
        (set_to("extra", 1), "unknown key extra"),
        (set_to("whole", [23, 6]), "whole are not rising numbers"),
        (set_to("positions", [6, 7, 13, 14, 20, 21, 23, 99]), "positions are not rising numbers from 1 to 24"),
        (set_to("positions", [6, 7]), "for 2 positions"),
        (set_to("whole", [6]), "logits.whole is float32 of shape"),
        (set_to("text", "../../etc/passwd"), "is not the name of a file"),
        (set_to("text", "a\x1b[31mb"), "is not the name of a file"),
        (set_to("vocab", 7), "cannot be a trace's"),
        (set_to("tensors", {}), "its tensors are not those it names"),
        (lambda document: document.pop("seed"), "missing key seed"),
    ],
)
def test_a_document_that_does_not_fit_is_refused(
    file: Path, tmp_path: Path, change: Callable[[dict[str, object]], None], said: str
) -> None:
    with pytest.raises(WrongCall, match=r"is not a golden trace, or damaged") as caught:
        trace_file.read(rewritten(file, tmp_path / "odd.safetensors", change=change))
    assert said in caught.value.message


def drop(name: str) -> Callable[[dict[str, Array]], None]:
    return lambda arrays: arrays.__delitem__(name)


def put(name: str, array: Array) -> Callable[[dict[str, Array]], None]:
    return lambda arrays: arrays.update({name: array})


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (drop("tokens"), "tokens is missing"),
        (drop("logits.rest"), "logits.rest is missing"),
        (drop("start.blocks.0.att.wkv"), "start.blocks.0.att.wkv is missing"),
        (put("tokens", np.array([0, 1, VOCAB, 3] * 6, np.int32)), "24 tokens of 0 to 31 cannot be a trace's"),
        (put("tokens", np.arange(3, dtype=np.int32)), "3 tokens"),
        (put("tokens", np.zeros(24, np.float32)), "tokens is float32"),
        (put("logits.ids", np.full((20, 11), -1, np.int32)), "not ids of this vocabulary"),
        (put("logits.rest", np.full((20, 2), np.nan)), "logits.rest holds NaN"),
        (put("start.blocks.0.att.shift", np.zeros((2, 6), np.float32)), "broadcast"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_even_with_hashes_that_do(
    file: Path, tmp_path: Path, tensors: Callable[[dict[str, Array]], None], said: str
) -> None:
    with pytest.raises(WrongCall) as caught:
        trace_file.read(rewritten(file, tmp_path / "odd.safetensors", tensors=tensors, rehash=True))
    assert said in caught.value.message


def test_a_changed_value_is_named_by_its_tensor(file: Path, tmp_path: Path) -> None:
    def nudge(arrays: dict[str, Array]) -> None:
        arrays["state.blocks.0.att.wkv"][0, 0, 0, 0, 0] += 1e-3

    with pytest.raises(WrongCall, match=r"state\.blocks\.0\.att\.wkv does not match its SHA-256"):
        trace_file.read(rewritten(file, tmp_path / "odd.safetensors", tensors=nudge))


def test_files_that_are_no_traces_are_refused_in_one_sentence(file: Path, tmp_path: Path) -> None:
    weights, long, none = tmp_path / "model.safetensors", tmp_path / "long.safetensors", tmp_path / "none"
    save_file({"emb.weight": np.zeros(3, np.float32)}, weights)
    long.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    for path, said in (
        (weights, "it has no rwkv-export-trace entry"),
        (long, "its header would be 1099511627776 bytes long"),
        (none, "is no file"),
        (tmp_path, "is no file"),
    ):
        with pytest.raises(WrongCall) as caught:
            trace_file.read(path)
        assert said in caught.value.message
        assert str(path) in caught.value.message


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(1, 255), cut=st.booleans())
def test_any_damaged_byte_is_noticed(file: Path, tmp_path: Path, at: float, byte: int, cut: bool) -> None:
    content = bytearray(file.read_bytes())
    index = int(at * len(content))
    content[index] ^= byte
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(content[:index] if cut else content)
    try:
        trace, _ = trace_file.read(damaged)
    except WrongCall:
        return
    assert same(trace, recorded()), "a byte of the header's white space at most may change without a word"


def test_a_shortened_step_says_at_most_what_the_whole_says() -> None:
    chance = np.random.default_rng(0)
    for _ in range(20):
        reference = chance.normal(0, 3, 400).astype(np.float32)
        target = reference + chance.normal(0, 0.3, 400).astype(np.float32)
        short = shortened(reference, 20, following=int(reference.argmin()))
        assert isinstance(short, Likeliest)
        part, whole = compare_step(short, target), compare_step(reference, target)
        assert (part.top1, part.top10, part.whole, whole.whole) == (whole.top1, whole.top10, False, True)
        assert part.max_abs == np.abs(target - reference)[short.ids].max() <= whole.max_abs
        assert 0.5 * whole.kl < part.kl <= whole.kl
        assert whole.kl == pytest.approx(entropy(softmax(reference), softmax(target)), rel=1e-4)
        p, q = softmax(reference.astype(np.float64)), softmax(target.astype(np.float64))
        grouped = [np.append(each[short.ids], 1 - each[short.ids].sum()) for each in (p, q)]
        assert part.kl == pytest.approx(entropy(*grouped), rel=1e-6)
        assert part.regret <= whole.regret + 1e-12
        known = compare_prediction(short, target, int(reference.argmin()))
        assert known.reference_loss == pytest.approx(-np.log(p[reference.argmin()]))
        assert known.loss == pytest.approx(-np.log(q[reference.argmin()]))


def test_a_greedy_token_that_was_not_kept_has_a_regret() -> None:
    reference = np.linspace(5, -5, 300).astype(np.float32)
    short = shortened(reference, 10, following=250)
    target = reference.copy()
    target[200] = 9
    found = compare_step(short, target)
    assert not found.top1
    assert found.regret == pytest.approx(float(reference[0] - reference[9])), "at least that much"
    with pytest.raises(CheckFailed, match="has shape"):
        compare_step(short, target[:-1])
