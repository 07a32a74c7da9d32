"""Files of questions: the formats, and answers against the PyPI package rwkv on the same tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

import exporter
import runtimes
from exporter.bundled import HELDOUT
from runtimes.errors import CheckFailed, Missing, WrongCall
from runtimes.tokenizer import open_tokenizer
from rwkv_export.main import run
from tests.models import random_checkpoint
from tests.oracle import Oracle
from validation import outcome
from validation.evaluation import evaluate
from validation.outcome import Outcome
from validation.tasks import (
    Answer,
    Encoded,
    Example,
    Questions,
    answer_all,
    compare_answers,
    encode,
    read_lambada,
    read_mmlu,
)

pytestmark = pytest.mark.slow

TEXTS = ("She was not at all ready", "He said no", "It is a truth")
QUESTIONS = (
    {"question": " Who? ", "choices": ["Austen", "Byron", "Scott", "Burns"], "answer": 0, "subject": "the_novel"},
    {"question": "2 + 2?", "choices": ["3", "4", "5", "6"], "answer": "B"},
)


def lines(path: Path, *documents: object) -> Path:
    path.write_text("".join(f"{json.dumps(document)}\n" for document in documents), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def lambada(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lines(tmp_path_factory.mktemp("q") / "words.jsonl", *({"text": text} for text in TEXTS))


@pytest.fixture(scope="module")
def mmlu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lines(tmp_path_factory.mktemp("q") / "questions.jsonl", *QUESTIONS)


def test_the_last_word_goes_with_its_space_as_lambada_openai_has_it(lambada: Path, tmp_path: Path) -> None:
    found = read_lambada(lambada)
    assert (found.task, found.file, len(found.sha256)) == ("lambada", "words.jsonl", 64)
    assert found.examples[0] == Example("She was not at all", (" ready",), 0)
    wide = lines(tmp_path / "w.jsonl", {"text": "two  spaces"}, {"text": "line\n end"})
    assert [example[:2] for example in read_lambada(wide).examples] == [("two", ("  spaces",)), ("line", ("\n end",))]
    assert len(read_lambada(lambada, limit=2).examples) == 2


def test_a_question_is_asked_as_mmlu_has_it(mmlu: Path) -> None:
    first, second = read_mmlu(mmlu).examples
    assert first == Example(
        "The following are multiple choice questions (with answers) about the novel.\n\n"
        "Who?\nA. Austen\nB. Byron\nC. Scott\nD. Burns\nAnswer:",
        (" A", " B", " C", " D"),
        0,
    )
    assert second == Example("2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:", (" A", " B", " C", " D"), 1)


@pytest.mark.parametrize(
    "content",
    [
        '"2 + 2?",3,4,5,6,B\n"one,\ntwo?",a,b,c,d,A\n',
        'question,A,B,C,D,answer\n2 + 2?,3,4,5,6,1\n"one,\ntwo?",a,b,c,d,0\n',
        'answer,D,C,B,A,question\nb,6,5,4,3,2 + 2?\nA,d,c,b,a,"one,\ntwo?"\n',
    ],
)
def test_a_table_has_a_header_or_the_usual_columns(content: str, tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text(content, encoding="utf-8")
    first, second = read_mmlu(tmp_path / "q.csv").examples
    assert first == Example("2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:", (" A", " B", " C", " D"), 1)
    assert second == Example("one,\ntwo?\nA. a\nB. b\nC. c\nD. d\nAnswer:", (" A", " B", " C", " D"), 0)


@pytest.mark.parametrize(
    ("read", "name", "content", "said"),
    [
        (read_lambada, "a.jsonl", '{"text": "a b"}\n{"txt": "a b"}\n', "a.jsonl, example 2: it lacks 'text'"),
        (read_lambada, "a.jsonl", '{"text": "a b"}\n{"text": 3}\n', "example 2: 3 is no text"),
        (read_lambada, "a.jsonl", '{"text": "word"}\n', "example 1: its text has no last word"),
        (read_lambada, "a.jsonl", '{"text": "ends "}\n', "or ends in a space"),
        (read_lambada, "a.jsonl", "[]\n", "example 1: '[]' is no object"),
        (read_lambada, "a.jsonl", "{\n", "example 1: Expecting property name"),
        (read_lambada, "a.jsonl", "\n\n", "holds no examples"),
        (read_lambada, "a.jsonl", "[" * 100_000, "example 1: "),
        (read_mmlu, "a.jsonl", '{"question": "q", "choices": ["a"], "answer": 0}\n', "1 choices, expected 4"),
        (read_mmlu, "a.jsonl", '{"question": "q", "choices": ["a", "b", "c", "d"], "answer": 4}\n', "'4' is not in"),
        (read_mmlu, "a.jsonl", '{"question": "q", "choices": ["a", "b", "c", "d"], "answer": ""}\n', "is not in list"),
        (read_mmlu, "a.csv", "q,a,b,c,A\n", "example 1: zip() argument 2 is shorter"),
        (read_mmlu, "a.csv", "question,choices,answer\nq,\"['a' 'b' 'c' 'd']\",0\n", "it lacks 'A'"),
    ],
)
def test_what_does_not_fit_is_named_by_its_example(
    read: Callable[[Path], Questions], name: str, content: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(WrongCall) as caught:
        read(tmp_path / name)
    assert said in caught.value.message


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9 au"}')
    with pytest.raises(WrongCall, match="not UTF-8 text: byte 13"):
        read_lambada(tmp_path / "latin.jsonl")
    with pytest.raises(WrongCall, match="cannot read"):
        read_mmlu(tmp_path / "none.csv")


def test_an_empty_context_begins_with_end_of_text_and_foreign_tokens_are_missing() -> None:
    asked = Questions("lambada", "f", "", (Example("", (" word",), 0), Example("a", (" b",), 0)))
    first, second = encode(asked, open_tokenizer("bytes"), 257)
    assert first.context == (0,)
    assert second == ((ord("a") + 1,), ((33, ord("b") + 1),), 0)
    with pytest.raises(Missing, match="token 120, outside this model's vocabulary of 100"):
        encode(asked, open_tokenizer("bytes"), 100)


def test_answers_are_summed_up() -> None:
    right, wrong = Answer(0, True, math.log(2)), Answer(-1, False, math.log(8))
    expected, given = [right, right, wrong, wrong], [right, wrong, wrong, wrong]
    found = compare_answers(Questions("lambada", "f", "x", ()), expected, given)
    assert (found.accuracy, found.reference_accuracy, found.same) == (0.25, 0.5, 0.75)
    assert found.error == pytest.approx(np.std([1, 0, 0, 0], ddof=1) / 2)
    assert (found.perplexity, found.reference_perplexity) == (pytest.approx(2**2.5), pytest.approx(4))
    alone = compare_answers(Questions("mmlu", "f", "x", ()), [right], [right])
    assert (alone.error, alone.perplexity) == (None, None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.pth"
    torch.save(random_checkpoint("7", layers=1, width=32, head_size=16, vocab=257, ffn=40, seed=3), path)
    return path


@pytest.fixture(scope="module")
def artifact(checkpoint: Path) -> Path:
    (folder,) = exporter.export(checkpoint, targets=["onnx-cpu"], out=checkpoint.parent)
    return folder


def by_the_package(checkpoint: Path, text: str, ending: str) -> tuple[float, bool]:
    """-log of the probability of an ending, and whether it is greedy, from the logits of the package rwkv."""
    tokens = [byte + 1 for byte in (text + ending).encode()]
    rows = Oracle(torch.load(checkpoint, weights_only=True), "7").trace(tokens[:-1]).logits.astype(np.float64)
    last = range(len(text.encode()), len(tokens))
    losses = [-log_softmax(rows[at - 1])[tokens[at]] for at in last]
    return float(sum(losses)), all(int(rows[at - 1].argmax()) == tokens[at] for at in last)


def test_answers_are_those_of_the_package_rwkv(artifact: Path, checkpoint: Path, lambada: Path, mmlu: Path) -> None:
    (row,) = evaluate([artifact], checkpoint=checkpoint, tokens=16, lambada=lambada, mmlu=mmlu).quality
    words, letters = row.tasks
    split = (text.rpartition(" ") for text in TEXTS)
    expected = [by_the_package(checkpoint, context, f" {word}") for context, _, word in split]
    perplexity = math.exp(np.mean([loss for loss, _ in expected]))
    assert words.perplexity == pytest.approx(perplexity, rel=1e-4)
    assert words.reference_perplexity == pytest.approx(perplexity, rel=1e-4)
    assert words.accuracy == np.mean([greedy for _, greedy in expected])
    right = []
    for context, endings, answer in read_mmlu(mmlu).examples:
        losses = [by_the_package(checkpoint, context, ending)[0] for ending in endings]
        right.append(int(np.argmin(losses)) == answer)
    assert (letters.accuracy, letters.same, letters.perplexity) == (np.mean(right), 1, None)
    assert row.outcome is Outcome.PASS


def test_a_word_is_right_where_each_of_its_tokens_is_greedy(artifact: Path, checkpoint: Path) -> None:
    oracle = Oracle(torch.load(checkpoint, weights_only=True), "7")
    context = [byte + 1 for byte in b"Emma"]
    first = int(oracle.trace(context).logits[-1].argmax())
    second = int(oracle.trace([*context, first]).logits[-1].argmax())
    endings = [(first, second), (first, (second + 1) % 257), ((first + 1) % 257, second)]
    asked = [Encoded(tuple(context), (ending,), 0) for ending in endings]
    session = runtimes.open_session(artifact)
    answers = answer_all(session, session.initial_state(), asked, what="words")
    assert [answer.right for answer in answers] == [True, False, False]
    assert [answer.chosen for answer in answers] == [0, -1, -1]


def test_the_command_prints_one_table(
    artifact: Path, checkpoint: Path, lambada: Path, mmlu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(checkpoint), "--lambada", str(lambada), "--mmlu", str(mmlu), "--limit", "2"]
    file = tmp_path / "q.json"
    assert run(["quality", str(artifact), "--tokens", "32", *words, "--json", str(file), "-q"]) == 0
    table = capsys.readouterr().out.splitlines()
    for header in ("precision", "weights", "perplexity", "mean KL nats", "top-5", "lambada right", "mmlu right"):
        assert header in table[0]
    assert table[2].startswith("checkpoint, fp32")
    assert table[3].startswith("fp32")
    assert "pass" in table[3]
    assert table[-1] == "Read 32 tokens of heldout.txt, 2 examples of words.jsonl, 2 examples of questions.jsonl."
    (row,) = outcome.read(file).quality
    assert row.reading
    assert (row.reading.top5, [task.examples for task in row.tasks]) == (1, [2, 2])
    assert run(["report", str(file), "-o", str(tmp_path / "r.html"), "-q"]) == 0
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "of the five likeliest 100 %" in page
    assert "mmlu 0 % right, checkpoint 0 %" in page or "mmlu 50.0 % right, checkpoint 50.0 %" in page


def test_calls_that_cannot_be_meant_are_refused(artifact: Path) -> None:
    for wrong in ({"limit": 0}, {"tokens": 0}, {"lambada": HELDOUT.with_name("none")}):
        with pytest.raises((WrongCall, CheckFailed)):
            evaluate([artifact], **wrong)
