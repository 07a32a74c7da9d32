"""Quality on text: the numbers against torch's and scipy's, gates that open and shut, rows that say why."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from scipy.special import softmax
from scipy.stats import entropy
from small_rnn import PLACE, VOCAB, session, specs

import exporter
from exporter import bundled
from runtimes import manifest
from runtimes.contract import Array, Artifact, Placement, Session, State, Step
from runtimes.errors import CheckFailed, Missing, WrongCall
from runtimes.session import ExplicitSession, Tensors
from tests.oracle import Oracle
from validation import judge, outcome, validate
from validation.metrics import Prediction, compare_prediction, read_text
from validation.outcome import Bound, Identity, Outcome, Quality, Results
from validation.parity import check
from validation.quality import Passage, Text, measure_quality, open_text, take_passage
from validation.reports import html, junit, markdown
from validation.runner import exit_code
from validation.tolerances import TABLE, bound, load
from validation.trace import choose_tokens, record

pytestmark = pytest.mark.slow

IDENTITY = Identity("folder", "small", "4", "fake", "fp32", PLACE, "")
TOKENS = choose_tokens(41, vocab=VOCAB, seed=0)
PASSAGE = Passage("novel.txt", TOKENS, 160)
GATED = Bound("small", 1.0, 1.0, 1.0, 1.0, "a test's own", text_kl=1e-2)
WKV = specs("float32")[1].name


def measured(target: Session, row: Bound = GATED, passage: Passage = PASSAGE) -> Quality:
    return measure_quality(target, session("float64"), passage, row, IDENTITY)


def off_by(scale: float) -> Callable[[int, Array, Tensors], tuple[Array, Tensors]]:
    """A fault: seeded noise on every logit."""
    chance = np.random.default_rng(3)
    return lambda calls, logits, new: (logits + scale * chance.normal(size=VOCAB).astype(np.float32), new)


def test_a_prediction_agrees_with_torch() -> None:
    pair = np.random.default_rng(0).normal(0, 4, (2, 300)).astype(np.float32)
    reference, target = torch.from_numpy(pair).double()
    found = compare_prediction(*pair, 17)
    kl = torch.nn.functional.kl_div(target.log_softmax(0), reference.log_softmax(0), reduction="sum", log_target=True)
    assert found.kl == pytest.approx(kl.item(), rel=1e-12)
    losses = [torch.nn.functional.cross_entropy(logits, torch.tensor(17)).item() for logits in (target, reference)]
    assert [found.loss, found.reference_loss] == pytest.approx(losses, rel=1e-12)
    assert (found.top1, found.exact) == (bool(target.argmax() == reference.argmax()), False)
    same = compare_prediction(pair[0], pair[0], 17)
    assert (same.kl, same.top1, same.exact) == (0, True, True)


def test_a_reading_is_what_scipy_and_numpy_make_of_all_logits_at_once() -> None:
    found = measured(session(fault=off_by(0.3)))
    logits = [steps(session("float64")), steps(session(fault=off_by(0.3)))]
    expected, ours = (softmax(rows.astype(np.float64), axis=1) for rows in logits)
    kl = entropy(expected, ours, axis=1)
    following = np.array(TOKENS[1:])
    losses = [-np.log(rows[np.arange(40), following]) for rows in (ours, expected)]
    assert found.reading is not None
    assert found.reading.tokens == 40
    assert found.reading.kl_mean == pytest.approx(kl.mean(), rel=1e-9)
    assert found.reading.kl_p99 == pytest.approx(np.percentile(kl, 99), rel=1e-9)
    assert found.reading.perplexity == pytest.approx(2 ** (losses[0].mean() / math.log(2)), rel=1e-9)
    assert found.reading.reference_perplexity == pytest.approx(math.exp(losses[1].mean()), rel=1e-9)
    assert found.reading.top1 == (ours.argmax(1) == expected.argmax(1)).mean()
    assert found.reading.bits_per_byte == pytest.approx(losses[0].sum() / math.log(2) / PASSAGE.size, rel=1e-9)


def steps(target: Session) -> Array:
    """The logits after each token but the last, stepped by hand."""
    state, rows = target.initial_state(), []
    for token in TOKENS[:-1]:
        step = target.step(token, state)
        state = step.state
        rows.append(step.logits)
    return np.stack(rows)


def test_a_perplexity_beyond_all_floats_is_infinite_and_nothing_predicted_is_refused() -> None:
    found = read_text([Prediction(1e4, 1e4, 1.0, top1=False, top5=0.2, exact=False)], size=0)
    assert (found.perplexity, found.bits_per_byte) == (math.inf, math.inf)
    assert dataclasses.replace(found, bytes=4, perplexity=-1.0).bits_per_byte == math.inf  # as a results file may say
    assert found.reference_perplexity == pytest.approx(math.e)
    with pytest.raises(CheckFailed, match="nothing was predicted"):
        read_text([], size=1)


def test_a_session_that_agrees_passes_with_equal_perplexity() -> None:
    row = measured(session(), bound("fp32"))
    assert (row.outcome, row.reasons, row.text) == (Outcome.PASS, (), "novel.txt")
    assert row.reading is not None
    assert row.reading.kl_mean < 1e-10
    assert row.reading.perplexity == pytest.approx(row.reading.reference_perplexity, rel=1e-5)
    assert row.reading.top1 == 1
    assert row.identity.observed == PLACE
    assert row.bound == bound("fp32")


def test_a_session_that_is_off_fails_and_says_kl_bound_and_text() -> None:
    row = measured(session(fault=off_by(0.5)))
    assert row.outcome is Outcome.FAIL
    (sentence,) = row.reasons
    assert row.reading is not None
    assert sentence.startswith(
        f"mean KL {row.reading.kl_mean:.3g} nats over 40 tokens of novel.txt exceeds 0.01 (small)"
    )
    assert measured(session(fault=off_by(0.05))).outcome is Outcome.PASS
    assert judge.broken_on_text(dataclasses.replace(row.reading, kl_mean=math.nan), GATED, "novel.txt")


def test_a_state_that_is_lost_shows_only_because_states_are_carried() -> None:
    def forget(calls: int, logits: Array, new: Tensors) -> tuple[Array, Tensors]:
        return logits, (new[0], np.zeros_like(new[1]), new[2])

    assert measured(session(fault=forget)).outcome is Outcome.FAIL
    assert measured(session(fault=forget), passage=Passage("word", TOKENS[:2], 4)).outcome is Outcome.PASS


def test_rows_without_a_bound_for_text_are_held_to_the_one_of_every_step() -> None:
    row = dataclasses.replace(GATED, text_kl=None, kl=1e-3)
    found = measured(session(fault=off_by(0.3)), row)
    assert found.outcome is Outcome.FAIL
    assert "exceeds 0.001" in found.reasons[0]


def test_elsewhere_is_a_fallback_and_exactness_is_suspicious_where_arithmetic_rounds() -> None:
    assert measured(session(observed="fake:host")).outcome is Outcome.FALLBACK
    same = measure_quality(session(), session(), PASSAGE, dataclasses.replace(GATED, rounds=True), IDENTITY)
    assert same.outcome is Outcome.SUSPICIOUS
    assert "compared with itself" in same.reasons[0]
    assert measure_quality(session(), session(), PASSAGE, GATED, IDENTITY).outcome is Outcome.PASS


def test_nan_is_a_failure_at_its_token() -> None:
    def late(calls: int, logits: Array, new: Tensors) -> tuple[Array, Tensors]:
        return (logits * np.float32("nan") if calls == 5 else logits), new

    with pytest.raises(CheckFailed, match=r"values of logits are NaN, at token 5 of novel.txt"):
        measured(session(fault=late))


def test_tuned_states_are_where_the_reference_starts() -> None:
    tuned = {WKV: np.full((1, 2, 3, 3), 5.0, np.float32)}
    target = ExplicitSession(specs("float32"), tuned, VOCAB, session()._graphs, lambda: Placement(PLACE, PLACE))
    found = measure_quality(target, session("float64"), PASSAGE, bound("fp32"), IDENTITY, tuned=tuned)
    assert found.outcome is Outcome.PASS
    assert measured(target, bound("fp32")).outcome is Outcome.FAIL


@pytest.mark.parametrize("row", ["int8", "int4"])
@pytest.mark.parametrize("index", range(3))
def test_the_wide_bounds_of_a_quantised_step_still_see_a_state_that_is_lost(row: str, index: int) -> None:
    def lose(calls: int, logits: Array, new: Tensors) -> tuple[Array, Tensors]:
        start = specs("float32")[index].initial()
        return logits, tuple(start if place == index else tensor for place, tensor in enumerate(new))

    trace = record(session("float64"), TOKENS[:12])
    whole = check(session(), trace, bound(row), IDENTITY, graph_sizes=(1, 4))
    lost = check(session(fault=lose), trace, bound(row), IDENTITY, graph_sizes=(1, 4))
    assert (whole.outcome, lost.outcome) == (Outcome.PASS, Outcome.FAIL)


def test_prefill_is_held_to_stepping_more_closely_than_either_to_the_checkpoint() -> None:
    def faulty_prefill(calls: int, logits: Array, new: Tensors) -> tuple[Array, Tensors]:
        return logits, (new[0], new[1] * np.float32(0.6), new[2]) if prefilling else new

    trace, itself = record(session("float64"), TOKENS[:12]), bound(bound("int4").itself or "")
    target, prefilling = session(fault=faulty_prefill), False
    prefill = target.prefill

    def prefill_wrongly(tokens: Sequence[int], state: State) -> Step:
        nonlocal prefilling
        prefilling = True
        try:
            return prefill(tokens, state)
        finally:
            prefilling = False

    target.prefill = prefill_wrongly  # type: ignore[method-assign]
    row = check(target, trace, bound("int4"), IDENTITY, graph_sizes=(1, 4), itself=itself)
    assert row.outcome is Outcome.FAIL
    assert {reason.partition(":")[0] for reason in row.reasons} == {"prefill 1", "prefill 4", "prefill uneven"}
    assert all("(int8)" in reason for reason in row.reasons)
    assert check(target, trace, bound("int4"), IDENTITY, graph_sizes=(1, 4)).outcome is Outcome.PASS


def opened(kind: str = "bytes", vocab: int = 257) -> Artifact:
    model = manifest.Model("m", "7", 1, 2, 1, 2, vocab, 64e-5, 1)
    target = manifest.Target("fake", "fake", "cpu", "int8", "int8")
    source, precision = manifest.Source("m.pth", "pth", 1, ""), manifest.Precision("int8", "float32")
    document = manifest.Manifest(1, model, source, target, precision, (), (), manifest.Tokenizer(kind), (), {})
    return Artifact(Path("folder"), document)


def test_a_passage_is_the_beginning_of_the_text_and_knows_its_bytes() -> None:
    passage = take_passage(Text("t", "añb and more"), opened(), 3)
    assert passage == Passage("t", (98, 0xC3 + 1, 0xB1 + 1, 99), 3)
    world = take_passage(Text("t", "Hello world, hello"), opened("world", 65536), 2)
    assert len(world.tokens) == 3
    assert world.size < len(b"Hello world, hello")


@pytest.mark.parametrize(
    ("text", "count", "sentence"),
    [
        ("abc", 3, "t has 3 tokens, too few to predict 3"),
        ("a", 1, "t has 1 tokens, too few"),
        ("", 1, "t has 0 tokens, too few"),
        ("abc", 0, "cannot measure quality over 0 tokens"),
    ],
)
def test_a_text_that_is_too_short_is_refused(text: str, count: int, sentence: str) -> None:
    with pytest.raises(WrongCall, match=sentence):
        take_passage(Text("t", text), opened(), count)


def test_what_cannot_be_read_with_this_artifact_is_missing() -> None:
    with pytest.raises(Missing, match="the artifact has no tokenizer"):
        take_passage(Text("t", "abc"), opened("none"), 2)
    with pytest.raises(Missing, match="t has token 122, outside this model's vocabulary of 101"):
        take_passage(Text("t", "xyz"), opened(vocab=101), 1)


def test_texts_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongCall, match=r"cannot read text .*none.txt: No such file"):
        open_text(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("añb".encode("latin-1"))
    with pytest.raises(WrongCall, match="is not UTF-8 text: byte 1"):
        open_text(tmp_path / "latin.txt")
    (tmp_path / "dos.txt").write_bytes(b"a\r\nb")
    assert open_text(tmp_path / "dos.txt") == Text("dos.txt", "a\r\nb")
    assert open_text().content.encode() == bundled.HELDOUT.read_bytes()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest trained model there is, as float32 ONNX."""
    out = tmp_path_factory.mktemp("out")
    (folder,) = exporter.export(bundled.SIBLINGS["5.2"], targets=["onnx-cpu"], out=out)
    return folder


def altered(artifact: Path, folder: Path, noise: float, **target: str) -> Path:
    """A copy whose matrices are off by `noise` of their own spread, and whose manifest says otherwise nothing."""
    shutil.copytree(artifact, folder)
    document, chance = manifest.read(folder), np.random.default_rng(0)
    model = onnx.load(folder / "decode.onnx")
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2 and min(tensor.dims) > 1:
            values = numpy_helper.to_array(tensor)
            values = values + chance.normal(0, noise * values.std(), values.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for name in ("decode.onnx", "model.onnx.data"):
        (folder / name).unlink()
    onnx.save(model, folder / "decode.onnx")
    changed = dataclasses.replace(document.target, **target)
    manifest.write(dataclasses.replace(document, target=changed, files=manifest.list_files(folder)), folder)
    return folder


INT8 = {"precision": "int8", "tolerance": "int8"}


def test_small_noise_keeps_the_gate_of_int8_and_a_tenth_breaks_it(artifact: Path, tmp_path: Path) -> None:
    good, bad = altered(artifact, tmp_path / "good", 0.003, **INT8), altered(artifact, tmp_path / "bad", 0.1, **INT8)
    results = validate([good, bad], steps=4, quality_tokens=128)
    assert [row.outcome for row in results.quality] == [Outcome.PASS, Outcome.FAIL]
    (sentence,) = results.quality[1].reasons
    assert "tokens of heldout.txt exceeds 0.002 (int8)" in sentence
    assert sentence.startswith("mean KL ")
    kept, broken = (row.reading for row in results.quality)
    assert kept and broken
    assert kept.kl_mean < 2e-3 < broken.kl_mean < 10
    assert kept.reference_perplexity == broken.reference_perplexity
    assert exit_code(results) == 1
    assert exit_code(validate([good], steps=4, quality_tokens=128)) == 0


def test_a_faithful_artifact_has_the_checkpoints_perplexity_when_asked(artifact: Path, tmp_path: Path) -> None:
    assert validate([artifact], steps=4).quality == ()
    (row,) = validate([artifact], steps=4, quality=True, quality_tokens=96).quality
    assert (row.outcome, row.text) == (Outcome.PASS, "heldout.txt")
    assert row.reading is not None
    assert (row.reading.tokens, row.reading.bytes, row.reading.top1) == (96, 96, 1)
    assert row.reading.kl_mean < 1e-10
    assert row.reading.perplexity == pytest.approx(row.reading.reference_perplexity, rel=1e-6)
    assert row.checkpoint_bytes == bundled.SIBLINGS["5.2"].stat().st_size
    assert row.weight_bytes > row.checkpoint_bytes, "float32 beside float16"
    own = tmp_path / "own.txt"
    own.write_text("It is a truth universally acknowledged", encoding="utf-8")
    (other,) = validate([artifact], steps=4, text=own, quality_tokens=20).quality
    assert (other.text, other.reading.tokens if other.reading else 0) == ("own.txt", 20)


def test_the_perplexity_is_that_of_the_package_rwkv(artifact: Path) -> None:
    (row,) = validate([artifact], steps=4, quality=True, quality_tokens=96).quality
    loaded = torch.load(bundled.SIBLINGS["5.2"], weights_only=True)
    tokens = [byte + 1 for byte in bundled.HELDOUT.read_bytes()[:97]]
    trace = Oracle({name: tensor.float() for name, tensor in loaded.items()}, "5.2").trace(tokens[:-1])
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(trace.logits), torch.tensor(tokens[1:]))
    assert row.reading is not None
    assert row.reading.perplexity == pytest.approx(math.exp(loss), rel=1e-4)


def test_an_artifact_without_a_tokenizer_is_a_row_that_says_so(artifact: Path, tmp_path: Path) -> None:
    folder = altered(artifact, tmp_path / "mute", 0.003, **INT8)
    document = manifest.read(folder)
    manifest.write(dataclasses.replace(document, tokenizer=manifest.Tokenizer("none")), folder)
    results = validate([folder], steps=4)
    assert (results.parity[0].outcome, results.quality[0].outcome) == (Outcome.PASS, Outcome.MISSING)
    assert results.quality[0].reasons == ("the artifact has no tokenizer, so that no text can be read with it",)
    assert exit_code(results) == 3


def test_calls_that_cannot_be_meant_are_refused_before_anything_runs(artifact: Path, tmp_path: Path) -> None:
    for wrong in (
        lambda: validate([artifact], quality_tokens=0),
        lambda: validate([artifact], text=tmp_path / "none.txt"),
    ):
        with pytest.raises(WrongCall):
            wrong()


def test_a_text_that_is_too_short_is_an_error_row_with_its_hint(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Emma", encoding="utf-8")
    results = validate([artifact], steps=4, text=tmp_path / "short.txt")
    assert results.quality[0].outcome is Outcome.ERROR
    assert "predict fewer: 3 at most" in results.quality[0].reasons[0]
    assert exit_code(results) == 1


PUBLISHED = {"int8": 2e-3, "w8a8": 5e-3, "int4": 5e-2}


def test_quantised_rows_have_a_bound_for_text_and_it_is_the_published_one() -> None:
    assert {name: row.text_kl for name, row in load(TABLE).items() if row.text_kl} == PUBLISHED
    assert bound("int8").mean_kl == 2e-3
    assert bound("fp32").mean_kl == bound("fp32").kl


def results_with(*rows: Quality) -> Results:
    machine = outcome.Machine("Linux", "a processor", 2, 1 << 30, "", "3.11", {})
    return Results(outcome.SCHEMA, machine, quality=rows)


def judged(name: str, result: Outcome = Outcome.PASS, *reasons: str) -> Quality:
    reading = outcome.TextReading(1024, 4100, 0.000713, 0.0123, 2.3456, 2.3411, 0.9871)
    identity = Identity(name, "tiny", "7", "onnx-cpu", "int8", "ort:cpu", "ort:cpu", evidence="run")
    return Quality(identity, result, reasons, "heldout.txt", bound("int8"), reading, 1_930_000, 3_750_000)


def test_rows_survive_the_file_and_files_from_before_quality_are_read(tmp_path: Path) -> None:
    results = results_with(judged("a"), judged("b", Outcome.FAIL, "too far"))
    outcome.write(results, tmp_path / "r.json")
    assert outcome.read(tmp_path / "r.json") == results
    document = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    del document["quality"]
    (tmp_path / "old.json").write_text(json.dumps(document), encoding="utf-8")
    assert outcome.read(tmp_path / "old.json") == results_with()


def test_every_report_has_the_numbers_and_the_reason() -> None:
    results = results_with(judged("good"), judged("bad", Outcome.FAIL, "mean KL too far"))
    page, summary, cases = html.render([results]), markdown.render(results), junit.render(results)
    for text in (page, summary, cases):
        for said in (
            "good",
            "bad",
            "mean KL too far",
            "7.1e-4",
            "0.0123",
            "2.346",
            "2.341",
            "1024 tokens",
            "heldout.txt",
        ):
            assert said in text, said
    for text in (page, summary):
        assert "1.93 MB" in text
        assert "98.7 %" in text
    assert "+0.19 %" in page
    for text in (page, cases):
        assert "0.3072 bits a byte" in text, "log2(2.3456) * 1024 / 4100"
    assert 'name="quality" tests="2" failures="1"' in cases
    assert "step by step; 2 artifacts read a text beside it; quality of 1 outside tolerance: bad (mean KL" in summary


@pytest.mark.parametrize(
    ("result", "badges", "headline"),
    [
        (Outcome.PASS, (("pass", "pass"),), "The artifact matches its checkpoint"),
        (Outcome.FAIL, (("fail", "quality: fail"),), "The artifact is not shown to match its checkpoint"),
        (Outcome.MISSING, (("pass", "pass"), ("missing", "quality: missing")), "The artifact matches its checkpoint"),
    ],
)
def test_quality_that_went_wrong_takes_the_pass_away(
    result: Outcome, badges: tuple[tuple[str, str], ...], headline: str
) -> None:
    from validation.reports.rows import join, verdict

    part = judged("a", result, *(["why"] if result is not Outcome.PASS else []))
    seen = outcome.Reading((0.1,) * 4, (0.1,) * 4, (30.0,) * 4, (1e-3,) * 4, 1.0, 1.0, None, {"s": 0.0}, {"s": 0.0})
    parity = outcome.Parity(part.identity, Outcome.PASS, (), 4, bound("int8"), seen, seen, {"1": 0.0})
    (row,) = join([dataclasses.replace(results_with(part), parity=(parity,))])
    assert row.badges == badges
    found = verdict([row])
    assert found.headline == headline
    assert len(found.clauses) == (result is not Outcome.PASS)
